"""Numbers have no more significant digits than hold."""

from __future__ import annotations

import math

import pytest

from llmcli.render.numbers import ModelLabel, at_most, compact, fixed, full, most_digits


@pytest.mark.parametrize(
    ("value", "decimals", "most", "shown"),
    [
        (23.87512, 3, None, "23.875"),
        (23.87512, 3, 6, "23.875"),
        (23.87512, 3, 4, "23.88"),
        (123456.7, 1, 4, "123500"),
        (9.99996, 3, 4, "10.00"),  # rounding adds a digit before the point
        (0.0123456, 4, 4, "0.0123"),
        (-0.5, 2, 4, "-0.50"),
        (0.0, 2, 4, "0.00"),
        (math.inf, 2, 4, "inf"),
    ],
)
def test_decimals_are_dropped_where_they_do_not_hold(value: float, decimals: int, most: int | None, shown: str) -> None:
    with at_most(most):
        assert fixed(value, decimals) == shown
    assert fixed(value, decimals) == f"{value:.{decimals}f}"  # the limit ends with its context


def test_all_digits_that_hold() -> None:
    assert full(1 / 3) == repr(1 / 3)
    with at_most(6):
        assert [full(1 / 3), full(math.nan), full(1e-20 / 3)] == ["0.333333", "nan", "3.33333e-21"]
        assert compact(12345.678, 6) == "12345.7"
    with at_most(4):
        assert compact(1.2345678, 6) == "1.235"
        assert fixed(1.5, 2, "+") == "+1.50"


def test_the_model_with_the_fewest_digits_counts() -> None:
    wide, narrow, far = ModelLabel("a", "float32"), ModelLabel("b", "bfloat16", "int8"), ModelLabel("c")
    assert [most_digits(models) for models in ([], [wide], [far], [wide, narrow])] == [None, 6, 6, 4]
    assert [str(label) for label in (wide, narrow, far)] == ["a, float32", "b, bfloat16, int8", "c"]
