import itertools

from lion_fast import figures


def test_labels_are_spread_without_changing_their_order():
    wanted = [0.5, 0.1, 0.51, 0.5, 0.9]
    places = figures.spread(wanted, 0.1)
    order = sorted(range(5), key=lambda index: wanted[index])
    gaps = [places[b] - places[a] for a, b in itertools.pairwise(order)]
    assert min(gaps) >= 0.1 - 1e-6
    assert places[1] == 0.1 and places[4] == 0.9
