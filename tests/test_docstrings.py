"""The examples in the docstrings run and print what they say."""

import doctest
import importlib
import pkgutil
from importlib.util import find_spec

import pytest

import modeling_scada
import processing


MODULES = sorted(
    name
    for package in (modeling_scada, processing)
    for name in (
        package.__name__,
        *(module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")),
    )
    # The application is imported where its extra is installed.
    if name != "modeling_scada.app" or find_spec("gradio")
)


def examples(name):
    return [test for test in doctest.DocTestFinder().find(importlib.import_module(name)) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    # Line breaks in what an example prints are for the reader.
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report = []
    for test in examples(name):
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def test_there_are_examples():
    """Those that are skipped, since they need a checkpoint or a video, do not count."""
    run = {
        test.name
        for name in MODULES
        for test in examples(name)
        if any(doctest.SKIP not in example.options for example in test.examples)
    }
    assert "modeling_scada.configuration_scada.ScadaConfig" in run
