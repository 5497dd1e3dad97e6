"""A plain PyTorch loop around a network of your own: `lion_dg_` and `deep_supervision_loss`."""

import torch
from torch import nn

from lion_fast import deep_supervision_loss, lion_dg_


class Net(nn.Module):
    """Two stages; a linear classifier reads the pooled map of each."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.aux_head = nn.Linear(16, num_classes)
        self.classifier = nn.Linear(32, num_classes)

    def taps(self, images):
        tap = self.stage1(images)
        return [tap, self.stage2(tap)]

    def forward(self, images):
        return self.classifier(self.taps(images)[-1].mean((2, 3)))


torch.manual_seed(0)
model = lion_dg_(Net())  # zeroes aux_head, leaves all else
heads = [model.aux_head, model.classifier]
loss_weights = torch.tensor([0.3, 1.0])  # auxiliary, main
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

images = torch.randn(256, 3, 16, 16)  # stand-ins for your batches
labels = images.mean((2, 3)).argmax(1)

for step in range(30):
    losses = deep_supervision_loss(
        model.taps(images), [h.weight for h in heads], [h.bias for h in heads], labels, loss_weights
    )
    optimizer.zero_grad()
    losses.loss.backward()
    optimizer.step()
    if step % 10 == 9:
        accuracy = losses.correct[-1] / len(labels)
        print(f"step {step + 1}  loss {losses.loss:.3f}  accuracy {accuracy:.2f}")
