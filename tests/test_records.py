"""How many problems are told in a few lines."""

from pipeline.errors import UserError, first


def test_the_first_few_and_how_many_more():
    assert first(["a", "b"], 2) == ["a", "b"]
    assert first(["a", "b", "c", "d"], 2) == ["a", "b", "... and 2 more"]
    assert first(["a", "b"], 2, number=7) == ["a", "b", "... and 5 more"]  # the others were only counted
    assert first([], 2) == []
    error = UserError.of(["x: 1", "y: 2", "z: 3"], 1)
    assert (str(error), error.problems) == ("x: 1\n... and 2 more", ["x: 1", "... and 2 more"])
