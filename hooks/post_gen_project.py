"""Keep the chosen starting point and say what to do next."""

import json
import shutil
from pathlib import Path

answers = json.loads(r"""
{{ cookiecutter | tojson }}
""")

chosen = Path("starting_points", answers["starting_point"])
for file in [path for path in chosen.rglob("*") if path.is_file()]:
    file.rename(file.relative_to(chosen))
shutil.rmtree("starting_points")

print(f"""
{answers["project_slug"]} is ready. Your code goes into task.py. Next:

    cd {answers["project_slug"]}
    make demo     # the sample task, through the production loop on a local endpoint
    make test""")
