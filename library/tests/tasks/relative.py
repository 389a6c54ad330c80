"""A task that reads and writes by relative paths, by itself, with the SDK's helpers and with another program."""

import subprocess
from pathlib import Path

from pydantic import BaseModel
from runpod.serverless.utils import download_files_from_urls, rp_upload

from aggregating_worker import Context

ITEM_CONCURRENCY = 1


class Input(BaseModel):
    items: list[str]


def load() -> None:
    Path("loaded.txt").write_text("loaded")


def process(item: str, job: Input, context: Context) -> str:
    match item.split():
        case ["read", name]:
            return Path(name).read_text()
        case ["write", name]:
            Path(name).write_text("written")
            return Path(name).read_text()
        case ["download", url]:
            [path] = download_files_from_urls(context.job_id, [url])
            return Path(path).relative_to(Path.cwd() / "jobs" / context.job_id).parent.name + Path(path).read_text()
        case ["upload", name]:
            uploaded = Path(rp_upload.upload_image(context.job_id, name))
            return f"{uploaded.parent} {uploaded.read_text()}"
        case [*program]:
            subprocess.run(program, check=True, stdin=subprocess.DEVNULL, capture_output=True)
            return program[-1] + f" {Path(program[-1]).exists()}"
    raise ValueError(item)
