"Axes hold the data that was given: values, counts, labels."
import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from knowloc import plots
from knowloc.neurons import Neurons, Scores


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def new_ax(): return Figure(layout="constrained").subplots()


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list])
def test_score_heatmap(kind):
    ax = new_ax()
    values = kind([[.1, .5, -.2, .3], [0., -1., -2., 4.]])
    assert plots.score_heatmap(values, k=3, ax=ax) is ax
    np.testing.assert_allclose(ax.images[0].get_array(), [[.5, .3, .1], [4, 0, 0]], atol=1e-6)
    assert ax.images[0].origin == "lower" and ax.get_ylabel() == "layer"
    ax.figure.canvas.draw()


def test_score_heatmap_of_zeros_and_of_fewer_neurons_than_ranks():
    ax = plots.score_heatmap(np.zeros((2, 3)))
    assert ax.images[0].get_array().shape == (2, 3)
    ax.figure.canvas.draw()


def test_scores_plot_says_what_it_shows():
    ax = Scores(torch.rand(3, 8), method="ig", query=("The capital of France is", "Paris")).plot(k=4)
    assert ax.images[0].get_array().shape == (3, 4)
    assert ax.get_title() == "ig · The capital of France is → Paris"


def test_layer_bars():
    a, b = Neurons([(0, 1), (0, 2), (2, 0)]), Neurons([(1, 1)])
    ax = plots.layer_bars({"ig": a, "random": b}, 4, new_ax())
    heights = [[p.get_height() for p in c] for c in ax.containers]
    assert heights == [[2, 0, 1, 0], [0, 1, 0, 0]]
    assert [to_hex(c[0].get_facecolor()) for c in ax.containers] == [plots.METHOD_COLORS[m].lower() for m in ("ig", "random")]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["ig", "random"]
    assert plots.layer_bars(a).get_legend() is None


def test_effect_dots():
    probs = {"unchanged": torch.tensor([.5, .1]), "suppressed": np.array([.01, 0.]), "random": [.5, .09]}
    ax = plots.effect_dots(probs, ["a", "b"], ax=new_ax())
    assert [l.get_label() for l in ax.lines] == list(probs) and ax.get_xscale() == "log"
    np.testing.assert_allclose([l.get_xdata() for l in ax.lines], [[.5, .1], [.01, 1e-12], [.5, .09]], rtol=1e-6)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    with pytest.raises(ValueError, match="1 labels for 2"): plots.effect_dots(probs, ["a"])


def test_query_heatmap_puts_agreement_first():
    values = torch.zeros(3, 2, 4)
    values[:, 0, 1], values[0, 1, 3], values[1, 1, 2], values[2, 1, 2], values[2, 0, 0] = 2., 1., -1., 4., -4.
    sets = [Neurons([(0, 1), (1, 3)]), Neurons([(0, 1), (1, 2)]), Neurons([(0, 1), (1, 2), (0, 0)])]
    ax = plots.query_heatmap(values, sets, ["q1", "q2", "q3"], ax=new_ax())
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.1", "1.2", "1.3", "0.0"]  # in 3, in 2, then by query
    np.testing.assert_allclose(ax.images[0].get_array(), [[1, 0, .5, 0], [1, -.5, 0, 0], [.5, 1, 0, -1]])
    dots = {(int(y), int(x)) for x, y in ax.collections[0].get_offsets()}
    assert dots == {(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (0, 2), (2, 3)}
    assert [t.get_text() for t in ax.texts] == ["in 3", "in 2", "in 1"]
    ax.figure.canvas.draw()
    again = plots.query_heatmap(list(values), sets)
    np.testing.assert_allclose(again.images[0].get_array(), ax.images[0].get_array())


def test_query_heatmap_wants_a_set_per_query():
    with pytest.raises(ValueError, match="one set per query"): plots.query_heatmap(torch.zeros(2, 1, 3), [Neurons([(0, 0)])])
    with pytest.raises(ValueError, match="not all empty"): plots.query_heatmap(torch.zeros(1, 1, 3), [Neurons()])


def test_every_method_has_its_own_color():
    assert len(set(plots.METHOD_COLORS.values())) == len(plots.METHOD_COLORS) == 9
