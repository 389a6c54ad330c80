"""Every environment variable that the worker reads, with its type and default."""

import os
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from types import ModuleType
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from aggregating_worker import log
from aggregating_worker.outcome.bucket import Access
from aggregating_worker.refusal import Refused, faults
from aggregating_worker.sentence import counted

BUCKET = {
    "bucket_endpoint_url": "endpointUrl",
    "bucket_access_key_id": "accessId",
    "bucket_secret_access_key": "accessSecret",
    "bucket_name": "bucketName",
    "bucket_region": "region",
}
"""The settings of the bucket, and their names in a job's ``s3Config``."""
SYNC_OUTPUT_BYTES = 20_000_000
"""What the platform takes for a job of ``/runsync``, whose id begins with ``sync-``; for others it is half of that."""
ALIKE = 0.9
"""How alike a misspelt name is to the setting's: a letter or two are wrong. ``WEB_CONCURRENCY`` is less alike."""


class Settings(BaseSettings):
    """The worker's settings; a field's environment variable is its name in capitals.

    What stands below a field is its description wherever the settings are listed: ``make settings`` writes it there.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True)

    processes: NonNegativeInt | None = None
    """Processes that run the task; unset: one for each GPU, at least one; 0: none beside the worker's own, for a
    debugger."""
    item_concurrency: PositiveInt | None = None
    """Calls of the task's function at once, in each process, over all jobs; unset: 4 if it is plain, 32 if it is async,
    1 for batches."""
    job_concurrency: PositiveInt | None = None
    """Jobs in hand at once, at most; unset: as many as there is room for."""
    lookahead: PositiveInt = 64
    """Results started but not yet streamed, per job, the chunk being posted counting as one: this bounds the memory
    that a job takes."""
    batch_size: PositiveInt = 32
    """Items per call of ``process_batch``, over all jobs with the same options; of one job at most ``LOOKAHEAD``."""
    batch_wait: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    """Seconds that a call which is not full waits for more items; 0: it takes what is there."""
    chunk_size: PositiveInt = 1
    """Envelopes in a chunk, at most. 1: a chunk is one envelope; more: a list of those that are ready, up to 1 MB."""
    item_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    """Seconds per item, a batch has that much for each; what runs over it is ended; 0: no limit."""
    max_items: PositiveInt = 10_000
    """Items per job, at most."""
    max_output_bytes: Annotated[int, Field(ge=1_000)] = 10_000_000
    """Bytes of the final body, at most; for a job of ``/runsync`` twice as many, unless this is set. What does not fit
    is stored, or a failure ``OutputTooLarge``."""
    undelivered_bytes: PositiveInt = 200_000_000
    """Bytes of results that wait for the platform, over all jobs; beyond that, only the oldest job goes on."""
    inline_file_bytes: Annotated[int, Field(ge=0)] = 100_000
    """Bytes up to which a file in a result is sent in it; a larger one goes to the bucket, if there is one."""
    deliver_for: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 300
    """Seconds for which a result that the platform does not take is sent again."""
    bucket_endpoint_url: str | None = None
    """An S3-compatible store for results that do not fit, which needs the next two, too. Bucket and region may be in
    its host: https://NAME.s3.eu-west-2.amazonaws.com"""
    bucket_access_key_id: SecretStr | None = None
    """The key that may write to the bucket."""
    bucket_secret_access_key: SecretStr | None = None
    """The secret of that key."""
    bucket_name: str | None = None
    """The bucket; unset: the one that the URL's host begins with."""
    bucket_region: str | None = None
    """The region that requests are signed for; unset: the one that the URL's host names."""
    allow_job_bucket: bool = False
    """Whether a job's own ``s3Config`` is used: whoever sends the job then chooses where the worker connects."""

    def output_limit(self, job_id: str) -> int:
        """Return how many bytes the final body of the job may have."""
        unset = "max_output_bytes" not in self.model_fields_set
        return SYNC_OUTPUT_BYTES if unset and job_id.startswith("sync-") else self.max_output_bytes

    def access(self) -> Access | None:
        """Return the bucket's address and keys, or None. Raises ``ValidationError`` if only some of them are set."""
        given = {field: value for name, field in BUCKET.items() if (value := getattr(self, name)) is not None}
        return Access.model_validate(given) if given else None


def read_settings(task: ModuleType | None = None) -> Settings:
    """Read the settings from the environment and, if they are not set there, from constants in ``task``.

    Logs a warning for a likely mistake. Raises ``Refused``, naming the variables, if a value cannot be used.
    """
    unset = [name for name in Settings.model_fields if not os.environ.get(name.upper())]
    constants = {name: getattr(task, name.upper()) for name in unset if hasattr(task, name.upper())}
    try:
        settings = Settings(**constants)
    except ValidationError as error:
        where = "task.py" if all(fault["loc"][0] in constants for fault in error.errors()) else "the environment"
        raise Refused(f"Check {where}: {faults(error, name=str.upper)}.") from None
    try:
        settings.access()
    except ValidationError as error:
        names = {field: name.upper() for name, field in BUCKET.items()}
        raise Refused(f"Check the environment: {faults(error, name=names.__getitem__)}.") from None
    for sentence in doubts(settings, os.environ, filter(str.isupper, vars(task) if task else ())):
        log.warning(sentence)
    return settings


def doubts(settings: Settings, environment: Iterable[str], constants: Iterable[str] = ()) -> Iterator[str]:
    """Yield a sentence for each likely mistake: a name that is nearly a setting's, a batch that one job cannot fill."""
    known = [name.upper() for name in Settings.model_fields]
    for where, names in (("the environment", environment), ("task.py", constants)):
        for name in names:
            if name.upper() not in known and (meant := get_close_matches(name.upper(), known, n=1, cutoff=ALIKE)):
                yield f"Check {where}: there is no setting {name}; did you mean {meant[0]}?"
    size, most = settings.batch_size, settings.lookahead
    if "batch_size" in settings.model_fields_set and size > most:
        yield f"BATCH_SIZE={size} is over LOOKAHEAD={most}: one job fills a call with {counted(most, 'item')} at most."
