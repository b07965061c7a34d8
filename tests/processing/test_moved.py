"""Modules that moved can be imported under their old names for a release, with a warning."""

import importlib

import pytest
from fresh_process import run_python

from processing.moved import MOVED


@pytest.mark.parametrize("name", MOVED)
def test_an_old_module_gives_the_names_of_the_new_ones(name):
    for module in MOVED[name]:
        try:
            new = importlib.import_module(module)
        except ImportError as error:  # an extra that is not installed
            pytest.skip(str(error))
        own = [key for key, value in vars(new).items() if getattr(value, "__module__", None) == module]
        assert own
        with pytest.warns(FutureWarning, match=f"has moved to `{module}`"):
            assert getattr(importlib.import_module(name), own[0]) is getattr(new, own[0])


def test_an_unknown_name():
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from processing.collator import nothing  # noqa: F401


def test_warnings_name_the_line_that_imports():
    code = "import warnings; warnings.simplefilter('error')\ntry:\n    from processing.collator import {}\n"
    code += "except FutureWarning as warning:\n    print(warning)"
    done = run_python(["-c", code.format("TemporalGroundingCollator")])
    assert "import it from there" in done.stdout, done.stderr
