"""The index from the contract to its proof says what is there."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.conformance.sentences import SENTENCES, Sentence

TESTS = Path(__file__).parents[1]
ALL = [sentence for section in SENTENCES.values() for sentence in section]


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("sentence", ALL, ids=lambda sentence: sentence.text[:60])
def test_every_sentence_of_the_contract_names_tests_that_exist(sentence: Sentence) -> None:
    assert sentence.tests, "nothing shows it"
    for test in sentence.tests:
        file, _, name = test.partition("::")
        assert (TESTS / file).is_file(), f"no file {file}"
        assert name in names_in(file), f"no test {name} in {file}"


def test_no_sentence_stands_twice() -> None:
    texts = [sentence.text for sentence in ALL]
    assert len(texts) == len(set(texts))
