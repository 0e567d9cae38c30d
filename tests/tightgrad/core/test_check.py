"""A bad setting is one readable error: the name, the value, the bound."""

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tightgrad as tg
from tightgrad.core.check import check_choice, check_integer, check_number


@pytest.mark.parametrize("value", ["nearest", "stochastic"])
def test_a_known_choice_passes(value):
    check_choice("rounding", value, ("nearest", "stochastic"))


@pytest.mark.parametrize("value", ["up", None, 8, b"nearest", ["nearest"], {}])
def test_an_unknown_choice_names_the_alternatives(value):
    with pytest.raises(tg.ConfigError) as error:
        check_choice("rounding", value, ("nearest", "stochastic"))
    for part in ("rounding", repr(value), "'nearest'", "'stochastic'"):
        assert part in str(error.value)


@pytest.mark.parametrize("value", [True, 8.0, "8"])
def test_a_choice_is_of_the_same_type(value):
    """True == 1 and 8.0 == 8, but they are other numbers in JSON, and 8.0 bits make sizes that are not integers."""
    with pytest.raises(tg.ConfigError, match="choose one of 8, 4, 1"):
        check_choice("bits", value, (8, 4, 1))


@pytest.mark.parametrize(("value", "bound"), [(0, "at least 1"), (-3, "at least 1")])
def test_an_integer_has_a_bound(value, bound):
    with pytest.raises(tg.ConfigError, match=rf"size={value} must be {bound}"):
        check_integer("size", value, low=1)


def test_an_integer_may_have_two_bounds():
    check_integer("bits", 62, low=0, high=62)
    with pytest.raises(tg.ConfigError, match=r"bits=63 must be in \[0, 62\]"):
        check_integer("bits", 63, low=0, high=62)


@pytest.mark.parametrize("value", [1.0, True, "1", None, math.nan])
def test_an_integer_is_an_integer(value):
    with pytest.raises(tg.ConfigError, match=r"size=.* must be an integer"):
        check_integer("size", value, low=0)


@pytest.mark.parametrize("value", [0.0, -1, 1.5, math.inf, -math.inf])
def test_a_number_has_bounds(value):
    with pytest.raises(tg.ConfigError) as error:
        check_number("density", value, above=0.0, high=1.0)
    assert f"density={value:g} must be above 0 and at most 1" in str(error.value)


def test_a_lower_bound_is_included():
    check_number("beta", 0.0, low=0.0)
    with pytest.raises(tg.ConfigError, match=r"beta=-0.1 must be at least 0"):
        check_number("beta", -0.1, low=0.0)


@pytest.mark.parametrize("value", [math.nan, True, "1.0", None, 1j, [1.0]])
def test_a_number_is_a_number(value):
    with pytest.raises(tg.ConfigError, match=r"density=.* must be a number"):
        check_number("density", value)


@given(st.one_of(st.integers(), st.floats(), st.just(10**400), st.text(), st.none(), st.booleans()))
def test_any_value_passes_or_is_a_config_error(value):
    for call in (
        lambda: check_number("x", value, above=0.0, high=1.0),
        lambda: check_integer("x", value, low=0, high=9),
        lambda: check_choice("x", value, (1, "a")),
    ):
        with contextlib.suppress(tg.ConfigError):
            call()
