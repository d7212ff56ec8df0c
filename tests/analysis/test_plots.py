"""Pictures: what is drawn is what was given, and nothing outside the figure is touched."""

import io
import itertools
import sys

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from slt_jax.analysis import center_tokens, principal_components, zscore_components
from slt_jax.analysis.plots import (
    plot_component_heatmap,
    plot_data_map,
    plot_embedding,
    plot_influence,
    plot_llc_traces,
    plot_loadings,
)
from slt_jax.analysis.plots.style import INK, MISSING, new_figure, place_names, with_error

from .responses import make_response

HEADS = [f"l{layer}h{head}" for layer in range(2) for head in range(3)]


class MadeUpResult:
    """What ``slt.llc`` returns, as far as the picture needs it."""

    def __init__(self, level=2.31, gap=0.1):
        generator = np.random.default_rng(0)
        self.dataset = xr.Dataset(
            {
                "llc": 41.3,
                "standard_error": 1.2,
                "init_loss": level,
                "loss_trace": (
                    ("chain", "draw"),
                    level + gap + 0.01 * generator.normal(size=(4, 100)),
                ),
            }
        )

    def to_xarray(self):
        return self.dataset


def make_table(rows=6, scale=1.0):
    generator = np.random.default_rng(1)
    values = scale * generator.normal(size=(rows, 3))
    coords = {"component": [f"c{row}" for row in range(rows)], "dataset": ["code", "prose", "rest"]}
    attributes = {"units": "nats^2"}
    return xr.DataArray(
        values, coords, ("component", "dataset"), name="susceptibility", attrs=attributes
    )


def make_map(labels=None):
    points = np.random.default_rng(2).normal(size=(60, 2))
    coords = {} if labels is None else {"label": ("example", labels)}
    return xr.Dataset(
        {
            "coordinate": (("example", "axis"), points, {"units": "nats"}),
            "explained_share": ("axis", [0.5, 0.2]),
        },
        coords,
    )


def make_groups():
    generator = np.random.default_rng(3)
    embedding = xr.DataArray(generator.normal(size=(50, 2)), dims=("token", "axis"))
    masks = generator.random((4, 50)) < 0.4
    names = ["induction", "numeric", "formatting", "other"]
    return embedding, xr.DataArray(masks, {"pattern": names}, ("pattern", "token"))


def analysed():
    return principal_components(center_tokens(zscore_components(make_response())), 3)


def block_matrix(seed=4):
    """Two groups that influence their own kind, in random order, and the groups."""
    generator = np.random.default_rng(seed)
    rows, columns = (
        generator.permutation(np.arange(30) % 2),
        generator.permutation(np.arange(16) % 2),
    )
    values = (rows[:, None] == columns) + 0.1 * generator.normal(size=(30, 16))
    return xr.DataArray(values, dims=("train", "query")), rows, columns


ALL = {
    "traces": lambda: plot_llc_traces({"all": MadeUpResult()}),
    "heatmap": lambda: plot_component_heatmap(make_table(), np.abs(make_table())),
    "loadings": lambda: plot_loadings(analysed(), highlighted=["l0h1"]),
    "embedding": lambda: plot_embedding(*make_groups()),
    "influence": lambda: plot_influence(block_matrix()[0]),
    "data map": lambda: plot_data_map(make_map(np.arange(60) % 10)),
}


@pytest.mark.parametrize("draw", ALL.values(), ids=ALL.keys())
def test_pictures_need_no_window_and_can_be_saved(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    buffer = io.BytesIO()
    draw().savefig(buffer, format="png", dpi=50)
    assert buffer.getvalue().startswith(b"\x89PNG")


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


def test_traces_show_the_loss_at_the_minimum_and_the_mean():
    result = MadeUpResult()
    figure = plot_llc_traces({"a": result, "b": MadeUpResult(gap=0.02)})
    panel = figure.axes[0]
    levels = {float(np.ravel(line.get_ydata())[0]) for line in panel.lines[-2:]}
    assert levels == {2.31, float(result.dataset["loss_trace"].mean())}
    assert len(panel.lines) == 4 + 2
    assert panel.get_title("right") == "λ̂ = 41.3 ± 1.2"
    # The scale is that of the losses, not one from zero.
    bottom, top = panel.get_ylim()
    assert 2.25 < bottom < 2.31
    assert 2.41 < top < 2.5
    with pytest.raises(ValueError, match="at least one result"):
        plot_llc_traces({})


@pytest.mark.parametrize(
    ("scale", "factor", "unit"), [(1.0, 1.0, "nats²"), (1e-4, 1e6, "10⁻⁶ nats²")]
)
def test_heatmap_shows_the_numbers_in_their_unit(scale, factor, unit):
    table = make_table(scale=scale)
    errors = xr.full_like(table, 0.5 * scale)
    axes, bar = plot_component_heatmap(table, errors).axes
    image = axes.images[0]
    np.testing.assert_allclose(image.get_array(), factor * table.values)
    assert image.norm.vmin == -image.norm.vmax
    assert bar.get_ylabel() == f"susceptibility ({unit})"
    shown = [with_error(factor * value, factor * 0.5 * scale) for value in table.values.ravel()]
    small = np.abs(table.values.ravel()) < scale
    assert texts_of(axes) == [
        f"({text})" if s else text for text, s in zip(shown, small, strict=True)
    ]
    assert 0 < small.sum() < small.size
    assert {text.get_color() for text in axes.texts} == {INK, "white"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["code", "prose", "rest"]


def test_heatmap_of_many_components_has_no_numbers_and_a_positive_one_starts_at_zero():
    table = np.abs(make_table(rows=60))
    axes, _ = plot_component_heatmap(table, label="λ̂").axes
    assert texts_of(axes) == []
    assert axes.images[0].norm.vmin == 0
    with pytest.raises(ValueError, match=r"\(component, …\)"):
        plot_component_heatmap(table.T)
    with pytest.raises(ValueError, match="errors have the dimensions"):
        plot_component_heatmap(table, table[:, 0])


FOOTNOTE = "in brackets: within two standard errors of zero"


@pytest.mark.parametrize(("error", "footnote"), [(1e-9, ""), (1.0, FOOTNOTE)])
def test_heatmap_explains_brackets_where_there_are_some(error, footnote):
    table = make_table()
    axes, _ = plot_component_heatmap(table, xr.full_like(table, error)).axes
    assert any(text.startswith("(") for text in texts_of(axes)) == bool(footnote)
    assert axes.get_xlabel() == footnote


def test_heatmap_leaves_cells_without_a_value_grey_and_says_nan():
    table = make_table()
    errors = xr.full_like(table, 1e-3)
    expected = texts_of(plot_component_heatmap(table, errors).axes[0])
    gone = table.copy()
    gone[0, :], gone[1, 0] = np.nan, np.inf
    axes, _ = plot_component_heatmap(gone, errors).axes
    lost = ~np.isfinite(gone.values.ravel())
    assert lost.sum() == 4
    shown = [(text.get_text(), text.get_color()) for text in axes.texts]
    assert [text for text, _ in shown] == np.where(lost, "nan", expected).tolist()
    assert {ink for text, ink in shown if text == "nan"} == {INK}
    figure = axes.figure
    figure.savefig(buffer := io.BytesIO(), format="raw", dpi=100)
    pixels = np.frombuffer(buffer.getvalue(), np.uint8).reshape(
        *figure.canvas.get_width_height()[::-1], 4
    )
    # A corner of the first cell, away from its text.
    x, y = axes.transData.transform((-0.45, -0.45)).astype(int)
    assert pixels[len(pixels) - y, x, 0] == int(MISSING[1:3], 16)
    unknown = plot_component_heatmap(xr.full_like(table, np.nan), errors)
    assert set(texts_of(unknown.axes[0])) == {"nan"}
    unknown.savefig(io.BytesIO(), format="png", dpi=50)


def test_loadings_name_every_component_without_covering_another():
    components = analysed()
    figure = plot_loadings(components, 1, 3, highlighted=["l1h0", "l2h1"], highlight_label="chosen")
    (axes,) = figure.axes
    assert sorted(texts_of(axes)) == sorted(components["component"].values.tolist())
    others, chosen = (collection.get_offsets() for collection in axes.collections)
    expected = components["loadings"].sel(component=["l1h0", "l2h1"], principal_component=[1, 3])
    np.testing.assert_allclose(chosen, expected)
    assert len(others) == 4
    assert "component 3" in axes.get_ylabel()
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    with pytest.raises(ValueError, match=r"\['l9h9'\] are not components"):
        plot_loadings(components, highlighted=["l9h9"])


def test_names_with_room_stand_beside_their_points_and_lines_lead_to_others():
    axes = new_figure(5.0, 5.0).subplots()
    lone = np.stack(np.meshgrid(np.linspace(0.1, 0.8, 4), np.linspace(0.3, 0.9, 4)), -1)
    crowd = np.full((10, 2), 0.05) + np.linspace(0, 0.01, 10)[:, None]
    points = np.concatenate([lone.reshape(-1, 2) + 1e-3 * np.pi, crowd])
    names = [f"n{number}" for number in range(len(points))]
    place_names(axes, points, names, [INK] * len(points))
    offsets = np.array([text.xyann for text in axes.texts])
    assert len(offsets) == 26
    np.testing.assert_allclose(offsets[:16, 1], 0, atol=1e-6)
    assert (offsets[:16, 0] > 0).all()
    has_line = np.array([text.arrow_patch is not None for text in axes.texts])
    assert not has_line[:16].any()
    assert has_line[16:].any()


def test_embedding_gives_each_token_its_first_group():
    embedding, groups = make_groups()
    (axes,) = plot_embedding(embedding, groups, order=["numeric", "induction"]).axes
    grey, numeric, induction = (collection.get_offsets() for collection in axes.collections)
    masks = dict(zip(groups["pattern"].values.tolist(), groups.values, strict=True))
    np.testing.assert_allclose(numeric, embedding.values[masks["numeric"]])
    np.testing.assert_allclose(induction, embedding.values[masks["induction"] & ~masks["numeric"]])
    assert len(grey) + len(numeric) + len(induction) == 50
    with pytest.raises(ValueError, match="can be shown"):
        plot_embedding(embedding, groups, order=["nonsense"])
    with pytest.raises(ValueError, match="of 50 tokens"):
        plot_embedding(embedding, groups[:, :10])
    with pytest.raises(ValueError, match="of 2 axes"):
        plot_embedding(embedding[:, :1], groups)


def test_influence_is_ordered_so_that_like_rows_are_neighbours():
    matrix, rows, columns = block_matrix()
    drawn = np.asarray(plot_influence(matrix).axes[0].images[0].get_array())
    assert np.allclose(np.sort(drawn.ravel()), np.sort(matrix.values.ravel()))
    # In the right order each row and each column changes once, from one block to the other.
    for lines in (drawn > 0.5, drawn.T > 0.5):
        assert np.sum(np.any(lines[1:] != lines[:-1], axis=1)) == 1
    axes = plot_influence(matrix, row_labels=rows, column_labels=columns).axes[0]
    expected = matrix.values[np.argsort(rows, kind="stable")][:, np.argsort(columns, kind="stable")]
    np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1"]
    with pytest.raises(ValueError, match="a label for each of the 30 entries of 'train'"):
        plot_influence(matrix, row_labels=rows[:-1])
    with pytest.raises(ValueError, match="expected a matrix"):
        plot_influence(matrix[0])


def test_loss_kernel_keeps_its_diagonal_and_is_scaled_by_the_rest():
    factors = np.random.default_rng(5).normal(size=(20, 3))
    kernel = factors @ factors.T + 1e3 * np.eye(20)
    image = plot_influence(xr.DataArray(kernel, dims=("example", "other"))).axes[0].images[0]
    drawn = np.asarray(image.get_array())
    np.testing.assert_array_equal(drawn, drawn.T)
    np.testing.assert_array_equal(np.sort(np.diag(drawn)), np.sort(np.diag(kernel)))
    assert image.norm.vmax < 50


def test_data_map_tells_labels_apart():
    labels = np.arange(60) % 10
    (axes,) = plot_data_map(make_map(labels)).axes
    looks = {
        (tuple(one.get_facecolor()[0]), one.get_paths()[0].vertices.tobytes())
        for one in axes.collections
    }
    assert len(looks) == 10
    assert texts_of(axes) == [str(label) for label in range(10)]
    assert axes.get_xlabel() == "axis 1 (nats, 50.0% of the variance)"
    assert len(plot_data_map(make_map()).axes[0].collections) == 1
    with pytest.raises(ValueError, match="two axes"):
        plot_data_map(make_map().isel(axis=[0]))


def test_missing_matplotlib_is_named_with_its_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("slt_jax.analysis.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"slt-jax\[plot\]"):
        __import__("slt_jax.analysis.plots")
