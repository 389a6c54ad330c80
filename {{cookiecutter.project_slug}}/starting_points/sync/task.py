"""Yours: what a job may ask for, what is loaded once, and what one item becomes."""

import re
from collections import Counter
from typing import Literal

from pydantic import BaseModel, ConfigDict
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

TOPICS = {
    "technology": {"app", "battery", "camera", "computer", "laptop", "phone", "screen", "software", "update", "wifi"},
    "shopping": {"bought", "cheap", "delivery", "item", "order", "package", "price", "product", "shipping", "store"},
    "service": {"agent", "call", "help", "helpful", "rude", "service", "staff", "support", "team", "wait"},
    "food": {"chef", "coffee", "delicious", "dinner", "food", "lunch", "meal", "menu", "restaurant", "taste"},
    "travel": {"airport", "beach", "flight", "hotel", "luggage", "room", "tour", "train", "travel", "trip"},
}
"""The words that speak for a category."""

_analyzer: SentimentIntensityAnalyzer


class Input(BaseModel):
    """The job's input: items is what gets processed, every other field is an option for the whole job."""

    model_config = ConfigDict(extra="forbid")

    items: list[str]
    task_type: Literal["sentiment", "classify"] = "sentiment"


class Sentiment(BaseModel):
    """The mood of a text. ``score`` is VADER's compound score, from -1 (negative) to 1 (positive)."""

    text: str
    sentiment: Literal["positive", "neutral", "negative"]
    score: float


class Category(BaseModel):
    """The topic of a text. ``confidence`` is the topic's share of the topic words in the text, from 0 to 1."""

    text: str
    category: str
    confidence: float


def load() -> None:
    """Load what every job needs, once, before the first job."""
    global _analyzer
    _analyzer = SentimentIntensityAnalyzer()


def process(item: str, job: Input) -> Sentiment | Category:
    """Turn one item into its result: anything that has a JSON form. What it raises fails this item only."""
    return classify(item) if job.task_type == "classify" else sentiment(item)


def sentiment(text: str) -> Sentiment:
    """Score the mood of ``text`` with VADER's lexicon, at the thresholds its authors give (±0.05)."""
    score = _analyzer.polarity_scores(text)["compound"]
    mood: Literal["positive", "neutral", "negative"] = "neutral"
    if abs(score) >= 0.05:
        mood = "positive" if score > 0 else "negative"
    return Sentiment(text=text, sentiment=mood, score=score)


def classify(text: str) -> Category:
    """Name the topic with the most words in ``text``; a text with no topic word is ``other``."""
    words = Counter(re.findall(r"[a-z]+", text.lower()))
    hits = {topic: sum(words[word] for word in spoken) for topic, spoken in TOPICS.items()}
    if not (total := sum(hits.values())):
        return Category(text=text, category="other", confidence=0.0)
    topic = max(hits, key=hits.__getitem__)
    return Category(text=text, category=topic, confidence=round(hits[topic] / total, 2))
