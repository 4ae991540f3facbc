"""Plan files: what is accepted, and what is said of what is not."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from claude_projects import plan
from claude_projects.plan import DEFAULT_COMMAND, PlanError, Program, load

ROOT = Path(__file__).parents[4]


def loaded(directory: Path, text: str) -> Program:
    path = directory / "nightly.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def complaints(directory: Path, text: str) -> list[str]:
    with pytest.raises(PlanError) as error:
        loaded(directory, text)
    lines = str(error.value).splitlines()
    assert all(line.startswith(str(directory / "nightly.toml")) for line in lines)
    return [line.removeprefix(str(directory / "nightly.toml")).lstrip(":") for line in lines]


def test_the_schema_file_is_that_of_the_model() -> None:
    kept = Path(plan.__file__).with_name("plan.schema.json").read_text(encoding="utf-8")
    made = json.dumps(plan.json_schema(), indent=2) + "\n"
    assert kept == made, "write json.dumps(plan.json_schema(), indent=2) into plan.schema.json"


def test_every_field_of_the_schema_is_documented_and_every_documented_field_is_in_the_schema() -> None:
    schema = plan.json_schema()
    fields = {*schema["properties"], *schema["$defs"]["PlanTask"]["properties"]}
    assert all(one["description"] for one in schema["properties"].values())
    assert all(one["description"] for one in schema["$defs"]["PlanTask"]["properties"].values())
    documented = re.findall(
        r"^\| `(\w+)`", (ROOT / "docs/plan-file.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(documented) == fields


def test_the_example_plan_is_one() -> None:
    program = load(ROOT / "examples/chores.toml")
    assert [task.name for task in program.tasks] == [
        "tools",
        "types",
        "format check",
        "lint",
        "unit tests",
        "wheel",
    ]


def test_a_prompt_gets_the_plans_command_and_that_is_claude_by_default(tmp_path: Path) -> None:
    program = loaded(tmp_path, 'project_id = "p"\n[[tasks]]\nname = "a"\nprompt = "x"\n')
    assert program.tasks[0].command == list(DEFAULT_COMMAND) == ["claude", "-p", "--output-format", "json"]
    assert program.name == "nightly"


def test_a_task_may_have_a_command_beside_its_prompt(tmp_path: Path) -> None:
    text = 'project_id = "p"\ncommand = "x"\n[[tasks]]\nname = "a"\nprompt = "x"\ncommand = "other"\n'
    assert loaded(tmp_path, text).tasks[0].command == "other"


def test_the_digest_follows_the_work_and_nothing_else(tmp_path: Path) -> None:
    def digest(more: str) -> str:
        return loaded(tmp_path, f'project_id = "p"\n[[tasks]]\nname = "a"\n{more}\n').tasks[0].digest

    assert digest('prompt = "x"') == digest('prompt = "x"\ntimeout_seconds = 5\ngithub_issue_id = "1"')
    assert len({digest('prompt = "x"'), digest('prompt = "y"'), digest('command = "x"')}) == 3


def test_the_digest_is_what_its_description_says(tmp_path: Path) -> None:
    (task,) = loaded(tmp_path, 'project_id = "p"\n[[tasks]]\nname = "ü\\n"\ncommand = ["x", "y"]\n').tasks
    described = '["ü\\n",null,["x","y"]]'
    assert task.digest == hashlib.sha256(described.encode()).hexdigest()[:12]


def test_everything_that_is_wrong_is_said_at_once_with_its_line_and_what_to_do(tmp_path: Path) -> None:
    text = """project_id = " "
comand = "x"

[[tasks]]
name = "a"

[[tasks]]
name = "b"
prompt = 3
command = [1]
timeout_seconds = 0

[[tasks]]
prompt = "x"
timeout_seconds = "5"
command = 5
"""
    assert complaints(tmp_path, text) == [
        "1: `project_id` must not be blank",
        "2: `comand` is not a field of a plan file; check its spelling or remove it",
        "4: task 1 ('a'): a task needs a `prompt` or a `command`",
        "9: task 2 ('b'): `prompt` must be a text in quotes",
        "10: task 2 ('b'): `command` must be a text in quotes or a list of them",
        "11: task 2 ('b'): `timeout_seconds` must be more than 0",
        "13: task 3: `name` is missing; add it",
        "15: task 3: `timeout_seconds` must be a number of seconds",
        "16: task 3: `command` must be a text in quotes or a list of them",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[tasks]]\nname = 'a'\ncommand = 'x'\n", ["1: `project_id` is missing; add it"]),
        ("project_id = 'p'\n", ["1: `tasks` is missing; add it: write at least one [[tasks]] table"]),
        (
            "project_id = 'p'\ntasks = []\n",
            ["2: `tasks` must not be empty: write at least one [[tasks]] table"],
        ),
        ("project_id = 'p'\ntasks = 3\n", ["2: `tasks` must be a list: write at least one [[tasks]] table"]),
        (
            "project_id = 'p'\n[[tasks]]\nname='a'\ncommand='x'\n[[tasks]]\nname='a'\ncommand='x'\n",
            ["1: tasks 1 and 2 are both named 'a'; rename one"],
        ),
        (
            "project_id = 'p'\n[[tasks]\n",
            [" is not valid TOML: Expected ']]' at the end of an array declaration (at line 2, column 8)"],
        ),
    ],
)
def test_a_bad_plan_is_explained(tmp_path: Path, text: str, said: list[str]) -> None:
    assert complaints(tmp_path, text) == said


def test_a_task_that_is_too_long_for_the_api_says_what_to_do(tmp_path: Path) -> None:
    text = f"project_id = 'p'\n[[tasks]]\nname = 'a'\nprompt = '{'x' * 60_000}'\n"
    (said,) = complaints(tmp_path, text)
    assert "put the long text into a file" in said


@pytest.mark.parametrize(
    "field", ['prompt = "a\\u0000"', 'command = "a\\u0000"', 'command = ["a", "\\u0000"]']
)
def test_a_nul_that_no_program_takes_is_refused(tmp_path: Path, field: str) -> None:
    (said,) = complaints(tmp_path, f"project_id = 'p'\n[[tasks]]\nname = 'a'\n{field}\n")
    assert "task 1 ('a') holds a NUL character" in said


def test_a_plan_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="there is no such file"):
        load(tmp_path / "none.toml")


def test_a_plan_that_is_no_text_says_so(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PlanError, match="cannot be read"):
        load(path)
