"""Every form of data gives the same rows, and what cannot be data is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from slt_jax.dataset import canonical, open_dataset
from tests.helpers import same_bits

INPUTS = np.arange(12, dtype=np.float32).reshape(6, 2)
LABELS = np.arange(6, dtype=np.int32)


class Rows:
    """A data set of dictionaries with batched access, as Hugging Face data sets have it."""

    def __init__(self, with_batches):
        self.asked = []
        if with_batches:
            self.__dict__["__getitems__"] = self.many

    def __len__(self):
        return 6

    def __getitem__(self, number):
        self.asked.append(number)
        return {"tokens": INPUTS[number].tolist(), "label": int(LABELS[number])}

    def many(self, numbers):
        self.asked.append(tuple(numbers))
        return [Rows.__getitem__(Rows(False), number) for number in numbers]


def test_arrays_and_pytrees_of_arrays(tmp_path):
    np.save(tmp_path / "inputs.npy", INPUTS)
    mapped = np.load(tmp_path / "inputs.npy", mmap_mode="r")
    chosen = np.asarray([4, 0, 4])
    for source in (INPUTS, mapped, jnp.asarray(INPUTS)):
        assert same_bits(open_dataset(source).rows(chosen), INPUTS[chosen])
    for source in ({"x": INPUTS, "y": LABELS}, {"x": mapped, "y": jnp.asarray(LABELS)}):
        rows = open_dataset(source).rows(chosen)
        assert same_bits(rows["x"], INPUTS[chosen])
        assert same_bits(rows["y"], LABELS[chosen])
    inputs, (labels,) = open_dataset((mapped, [LABELS])).rows(chosen)
    assert same_bits(inputs, INPUTS[chosen])
    assert same_bits(labels, LABELS[chosen])


@pytest.mark.parametrize("with_batches", [False, True])
def test_objects_with_rows(with_batches):
    source = Rows(with_batches)
    dataset = open_dataset(source)
    source.asked.clear()
    rows = dataset.rows(np.asarray([5, 2]))
    assert dataset.num_examples == 6
    assert np.array_equal(rows["tokens"], INPUTS[[5, 2]])
    assert np.array_equal(rows["label"], LABELS[[5, 2]])
    assert source.asked == ([(5, 2)] if with_batches else [5, 2])


def test_lists_of_rows():
    rows = [{"x": x, "y": y} for x, y in zip(INPUTS, LABELS, strict=True)]
    taken = open_dataset(rows).rows(np.asarray([1, 3]))
    assert same_bits(taken["x"], INPUTS[[1, 3]])
    assert same_bits(taken["y"], LABELS[[1, 3]])


def test_size_on_the_device_is_counted_in_its_dtypes():
    wide = {"x": INPUTS.astype(np.float64), "y": LABELS.astype(np.int64)}
    assert open_dataset(wide).num_bytes == 6 * (2 * 4 + 4)
    assert open_dataset(Rows(False)).num_bytes == open_dataset(Rows(True)).num_bytes == 6 * 3 * 4


def test_wide_numbers_are_narrowed_and_overflow_is_an_error():
    assert canonical(np.asarray([1, -2], np.int64)).dtype == np.int32
    assert canonical(np.asarray([0.5], np.float64)).dtype == np.float32
    assert canonical(np.asarray([1, 2], np.uint8)).dtype == np.uint8
    limits = np.asarray([2**31 - 1, -(2**31)], np.int64)
    assert canonical(limits).tolist() == limits.tolist()
    for value in (2**31, -(2**31) - 1):
        with pytest.raises(ValueError, match="do not fit int32"):
            open_dataset(np.asarray([0, value], np.int64)).rows(np.asarray([1]))


@pytest.mark.parametrize("column", [np.asarray(["a", "b"]), np.asarray([None, 1.0])])
def test_columns_of_text_or_objects_are_refused(column):
    with pytest.raises(TypeError, match=r"tokenize text, .* keep only numeric columns"):
        open_dataset({"text": column})


class Lines:
    """A data set of texts."""

    def __len__(self):
        return 2

    def __getitem__(self, number):
        return {"text": ("to be", "or not")[number], "label": number}


@pytest.mark.parametrize("source", ["to be", ["to be", "or not"], [["to"], ["be"]], Lines()])
def test_text_is_refused_before_it_is_read(source):
    with pytest.raises(TypeError, match="tokenize text"):
        open_dataset(source)


def test_rows_that_are_fetched_are_compared_when_they_are():
    class Fetched:
        def __len__(self):
            return 3

        def __getitem__(self, number):
            return np.zeros(2 + (number == 2), np.float32)

    with pytest.raises(ValueError, match=r"example 1 has shapes .* example 2 has"):
        open_dataset(Fetched()).rows(np.asarray([1, 2]))


@pytest.mark.parametrize(
    "source", [np.zeros((0, 3)), (np.zeros((0, 3)), np.zeros(0)), [], {}, ()], ids=repr
)
def test_empty_data_are_refused(source):
    with pytest.raises(ValueError, match="the data set is empty"):
        open_dataset(source)


def test_ragged_data_are_refused_and_shown():
    with pytest.raises(ValueError, match=r"ragged data.*0: \(6, 2\), 1: \(5,\)"):
        open_dataset((INPUTS, LABELS[:5]))
    with pytest.raises(ValueError, match="ragged data"):
        open_dataset((INPUTS, np.ones(())))
    rows = [{"tokens": [1, 2]}, {"tokens": [1, 2]}, {"tokens": [1, 2, 3]}]
    with pytest.raises(
        ValueError, match=r"example 0 has shapes .* example 2 .* weights that are 0"
    ):
        open_dataset(rows)
    with pytest.raises(ValueError, match=r"example 0 has shapes \(3,\) and example 1 has \(2,\)"):
        open_dataset([[1, 2, 3], [4, 5]])


def test_what_can_be_read_only_once_is_refused():
    with pytest.raises(TypeError, match="read only once"):
        open_dataset(row for row in INPUTS)


@pytest.mark.parametrize("source", [3, np.float32(3), None])
def test_what_has_no_rows_is_refused(source):
    with pytest.raises(TypeError, match="must be arrays with one entry per example"):
        open_dataset(source)


def test_a_list_of_arrays_is_ambiguous():
    with pytest.raises(TypeError, match="columns or rows"):
        open_dataset([INPUTS, LABELS])


@pytest.mark.parametrize("source", [{"x": [1, 2, 3]}, ([1, 2], [3, 4]), {"train": Rows(False)}])
def test_columns_that_are_no_arrays_are_refused(source):
    with pytest.raises(TypeError, match="columns of a data set must be arrays"):
        open_dataset(source)
