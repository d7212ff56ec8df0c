"""Token patterns and tokens in context, on texts written for the purpose."""

import itertools

import numpy as np
import pytest
import xarray as xr

from slt_jax.analysis import TokenText, token_patterns, top_tokens
from slt_jax.analysis.patterns import PATTERNS, induction, label_sequences

from .responses import make_coords, make_text, read


def labels_of(*words):
    """The patterns of each token of one sequence."""
    vocabulary = sorted(set(words))
    tokens = np.array([[vocabulary.index(word) for word in words]])
    text = TokenText({"d": tokens}, lambda ids: vocabulary[ids[0]])
    grid = label_sequences(tokens, text)[:, 0]
    return [
        {name for name, mask in zip(PATTERNS, grid, strict=True) if mask[i]}
        for i in range(len(words))
    ]


def test_words_start_and_go_on():
    assert labels_of("un", "believ", "able", " story", " of", "2", "x", "_y", ".z") == [
        {"word start"},
        {"word part"},
        {"word part"},
        {"word start"},
        {"word start"},
        {"numeric"},
        {"word start"},
        {"word start"},
        {"word start"},
    ]


def test_a_token_can_end_one_word_and_start_another():
    assert labels_of("don", "t,but", "s")[1:] == [{"word part", "word start"}, {"word part"}]


def test_delimiters_open_and_close():
    assert labels_of("f", "(", "[", ")", " ])", "()", "“", "”", "<", '"') == [
        {"word start"},
        {"delimiter open"},
        {"delimiter open"},
        {"delimiter close"},
        {"delimiter close"},
        {"delimiter open", "delimiter close"},
        {"delimiter open"},
        {"delimiter close"},
        {"other"},
        {"other"},
    ]
    # With a letter it is a word, with a digit a number.
    assert labels_of("(a", "(1") == [{"word start"}, {"numeric"}]


def test_numbers_and_layout():
    assert labels_of(" 3.14", "0", "\n", "\n    ", " ", "", "é", "٣", "+") == [
        {"numeric"},
        {"numeric"},
        {"formatting"},
        {"formatting"},
        {"formatting"},
        {"other"},
        {"word start"},
        {"numeric"},
        {"other"},
    ]


def test_induction_by_the_definition():
    tokens = np.random.default_rng(0).integers(0, 4, (5, 40))
    expected = np.zeros(tokens.shape, bool)
    for row, line in enumerate(tokens.tolist()):
        pairs = list(itertools.pairwise(line))
        for t in range(1, len(line)):
            expected[row, t] = pairs[t - 1] in pairs[: t - 1]
    assert np.array_equal(induction(tokens), expected)
    # Sequences do not see each other's pairs.
    assert not induction(np.array([[1, 2, 3], [1, 2, 3]])).any()


def test_second_half_of_a_repeated_sequence_is_induction():
    half = np.random.default_rng(1).permutation(30)[None]
    expected = np.arange(60) > 30
    assert np.array_equal(induction(np.concatenate([half, half], axis=1))[0], expected)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_short_sequences_have_no_induction(length):
    assert not induction(np.zeros((2, length), np.int64)).any()


def test_labels_stand_at_the_token_that_is_predicted():
    text = make_text()
    frame = xr.DataArray(np.zeros(40), dims="token", coords=without_components())
    labels = token_patterns(text, frame)
    assert labels.dims == ("pattern", "token")
    for number in range(40):
        place = labels.isel(token=number)
        tokens = text.tokens[str(place["dataset"].values)][int(place["sequence"])]
        piece = read([int(tokens[int(place["position"]) + 1])])
        assert bool(place.sel(pattern="formatting")) == (piece == "\n")
        assert bool(place.sel(pattern="delimiter open")) == (piece == "(")
        assert bool(place.sel(pattern="numeric")) == (piece == " 12")
    assert np.all(labels.any("pattern"))


def without_components():
    coords = make_coords(1, 4, 10)
    del coords["component"]
    return coords


def make_values():
    values = np.random.default_rng(2).normal(size=40)
    return xr.DataArray(values, dims="token", coords=without_components())


def test_top_tokens_are_the_extremes_with_their_context():
    text, values = make_text(), make_values()
    found = top_tokens(values, text, k=3, width=2)
    order = np.argsort(values.values)
    assert [token.value for token in found.smallest] == values.values[order[:3]].tolist()
    assert [token.value for token in found.largest] == values.values[order[::-1][:3]].tolist()
    for token in (*found.largest, *found.smallest):
        line = text.tokens[token.dataset][token.sequence]
        index = token.position + 1
        assert token.token == read([line[index]])
        assert token.left == read(line[max(0, index - 2) : index])
        assert token.right == read(line[index + 1 : index + 3])
        assert f"⟦{token.token}⟧" in str(found)


def test_another_text_is_refused():
    values, text = make_values(), make_text()
    ids = np.concatenate([text.tokens[name][:, 1:].reshape(-1) for name in ("code", "prose")])
    checked = values.assign_coords(token_id=("token", ids))
    assert len(top_tokens(checked, text, k=2).largest) == 2
    with pytest.raises(ValueError, match="not those of the text"):
        top_tokens(checked, text._replace(shift=0), k=2)
    with pytest.raises(ValueError, match="no text for the data set 'prose'"):
        top_tokens(values, text._replace(tokens={"code": text.tokens["code"]}), k=2)
    with pytest.raises(ValueError, match="not the text that was probed"):
        top_tokens(values, text._replace(shift=2), k=2)
    with pytest.raises(ValueError, match=r"no coordinates \['position'\]"):
        top_tokens(values.drop_vars("position"), text, k=2)
    with pytest.raises(ValueError, match="one value per token"):
        top_tokens(values.expand_dims("component"), text)
    with pytest.raises(ValueError, match="between 1 and the 40 tokens, got 41"):
        top_tokens(values, text, k=41)
