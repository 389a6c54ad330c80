"""A test of the old form, as the owner of a port writes it."""

from aggregating_worker.testing.caller import Serve


def test_an_old_request_has_its_old_answer(serve: Serve) -> None:
    state = serve().post("/runsync", json={"input": {"audio_base64": "SGVsbG8="}}).json()
    assert state["output"]["transcription"] == "Hello"
