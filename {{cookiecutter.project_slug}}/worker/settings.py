"""Every environment variable the worker reads, typed, in one place."""

from typing import Annotated

from pydantic import Field, PositiveInt, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.refusal import Refused, faults


class Settings(BaseSettings):
    """The worker's settings; each field is the environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True)

    item_concurrency: PositiveInt | None = None
    """Calls of the task at once, over all jobs; unset: 4 for a plain function, 32 for an async one, 1 for batches."""
    job_concurrency: PositiveInt = 1
    """Jobs taken at once."""
    lookahead: PositiveInt = 64
    """Results started but not yet streamed, per job: the bound on the memory that a job takes."""
    batch_size: PositiveInt = 32
    """Items per call of ``process_batch``."""
    chunk_size: PositiveInt = 1
    """1: a chunk is one envelope. More: a chunk is a list of the envelopes that are ready, up to this many and 1 MB."""
    item_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    """Seconds per item; 0: none."""
    max_items: PositiveInt = 10_000
    """Items per job."""
    max_output_bytes: Annotated[int, Field(ge=1_000)] = 10_000_000
    """Bytes of the final body at most, as the SDK encodes it."""


def read_settings() -> Settings:
    """Read the settings from the environment; raise ``Refused``, naming the variables, if a value is not usable."""
    try:
        return Settings()
    except ValidationError as error:
        raise Refused(f"Check the environment: {faults(error, name=str.upper)}.") from None
