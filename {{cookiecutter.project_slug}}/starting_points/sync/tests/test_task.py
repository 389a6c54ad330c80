"""Yours: what ``task.py`` promises. These tests follow your edits of it."""

import pytest
from pydantic import ValidationError

import task


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    task.load()


@pytest.mark.parametrize(
    ("text", "mood"),
    [("I love this product!", "positive"), ("The bus is blue.", "neutral"), ("I hate it, it is awful.", "negative")],
)
def test_sentiment_follows_the_words(text: str, mood: str) -> None:
    result = task.process(text, task.Input(items=[text]))
    assert isinstance(result, task.Sentiment)
    assert (result.text, result.sentiment) == (text, mood)
    assert -1 <= result.score <= 1


@pytest.mark.parametrize(
    ("text", "category", "confidence"),
    [
        ("The PHONE has a bad battery.", "technology", 1.0),
        ("The hotel room was far from the restaurant.", "travel", 0.67),
        ("Hm.", "other", 0.0),
        ("", "other", 0.0),
    ],
)
def test_classify_names_the_topic_with_the_most_words(text: str, category: str, confidence: float) -> None:
    result = task.process(text, task.Input(items=[text], task_type="classify"))
    assert result == task.Category(text=text, category=category, confidence=confidence)


def test_an_unknown_task_type_names_the_allowed_ones() -> None:
    with pytest.raises(ValidationError, match="'sentiment' or 'classify'"):
        task.Input.model_validate({"items": ["x"], "task_type": "poetry"})
