"""The examples of the docs run as they stand."""

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent


def test_the_plain_loop_learns_with_a_head_that_starts_at_zero(capsys):
    names = runpy.run_path(str(EXAMPLES / "example_plain_loop.py"))
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[3]) for line in lines]
    assert losses == sorted(losses, reverse=True)
    # A zero head's loss is log 10.
    assert names["losses"].per_head[0] < 0.8 * torch.tensor(10.0).log()
    assert names["model"].aux_head.weight.any()


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("monai", "monai"),
        ("nnunet", "dynamic_network_architectures"),
        ("mmseg", "torch"),
        ("transformers", "transformers"),
        ("lightning", "lightning"),
    ],
)
@pytest.mark.filterwarnings("default")
def test_a_frameworks_own_way_ends_with_auxiliary_logits_of_0(name, package):
    pytest.importorskip(package, reason=f"{package} is not installed")
    example = EXAMPLES / f"example_{name}.py"
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 25
    names = runpy.run_path(str(example))
    assert names["auxiliary"] and not any(logits.any() for logits in names["auxiliary"])
    assert names.get("main", torch.ones(1)).any()


@pytest.mark.filterwarnings("default")
def test_lightnings_trainer_zeroes_the_heads_before_its_first_step_and_wakes_them():
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    names = runpy.run_path(str(EXAMPLES / "example_lightning.py"))

    class Trained(names["Classifier"]):
        def training_step(self, batch, index):
            outputs.append(self.network(batch[0]))
            return sum(torch.nn.functional.cross_entropy(z, batch[1]) for z in outputs[-1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    outputs = []
    images = torch.utils.data.TensorDataset(torch.randn(4, 3, 64, 64), torch.tensor([3, 7, 1, 2]))
    batches = torch.utils.data.DataLoader(images, batch_size=2)
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        callbacks=[names["LionDG"]()],
        **dict.fromkeys(quiet, False),
    )
    trainer.fit(Trained(), batches)
    (main, *zero), (_, *awake) = outputs
    assert main.any() and not any(logits.any() for logits in zero)
    assert all(logits.any() for logits in awake)


@pytest.mark.filterwarnings("default")
def test_transformers_trainer_zeroes_the_head_before_its_first_step_and_wakes_it(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    names = runpy.run_path(str(EXAMPLES / "example_transformers.py"))
    model = transformers.UperNetForSemanticSegmentation(names["config"])
    seen = []
    model.auxiliary_head.classifier.register_forward_hook(lambda m, x, y: seen.append(y.detach()))
    labels = torch.zeros(64, 64, dtype=torch.long)
    item = {"pixel_values": torch.randn(3, 64, 64), "labels": labels}
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model, arguments, train_dataset=[item] * 4, callbacks=[names["LionDG"]()]
    )
    trainer.train()
    # The run that checks the head comes before the two steps.
    *_, zero, awake = seen
    assert trainer.state.global_step == 2 and not zero.any() and awake.any()
