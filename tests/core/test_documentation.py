"""Help pages, translations and README against the nodes they describe. The nodes' source is read, not run."""

import ast
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from dynamicid_core.checkpoint import VARIANTS
from dynamicid_core.face_analysis import DOWNLOADABLE, ORDERS, PROVIDERS
from dynamicid_core.saa import SaaSettings

ROOT = Path(__file__).parents[2]
HELP, LOCALES = ROOT / "web" / "docs", ROOT / "locales"
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/golden/README.md"]
COMMANDS = ("python scripts/demo.py", "python scripts/test.py")
CHINESE = re.compile("[\u4e00-\u9fff]")


def parse(path):
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def constants(tree):
    """Names that a module gives to plain values."""
    found = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            (target,) = statement.targets
            names, values = (
                (target.elts, statement.value.elts)
                if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple)
                else ([target], [statement.value])
            )
            for name, value in zip(names, values, strict=True):
                try:
                    found[name.id] = ast.literal_eval(value)
                except ValueError:
                    continue  # made by a call
    return found


def value_of(node, names):
    """A default or limit as it is written in a schema. None: not written, or a list."""
    if node is None or isinstance(node, (ast.List, ast.Call)):
        return None
    if isinstance(node, ast.Attribute):
        return getattr(SaaSettings(), node.attr)
    if isinstance(node, ast.IfExp):
        return value_of(node.body, names)
    return names[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)


def read_input(call, names):
    """`io.X.Input("id", default=…, min=…, max=…, tooltip=…)`, or `_fraction("id", default, tooltip, max)`."""
    written = {keyword.arg: keyword.value for keyword in call.keywords}
    if isinstance(call.func, ast.Name):
        written |= dict(zip(("default", "tooltip", "max"), call.args[1:], strict=False))
        written = {"min": ast.Constant(0.0), "max": ast.Constant(1.0)} | written
    parts = {part: value_of(written.get(part), names) for part in ("default", "min", "max", "tooltip")}
    return {"id": call.args[0].value, **parts}


def read_schema(call, names):
    written = {keyword.arg: keyword.value for keyword in call.keywords}
    outputs = [{keyword.arg: keyword.value.value for keyword in output.keywords} for output in written["outputs"].elts]
    return {
        "display_name": written["display_name"].value,
        "description": written["description"].value,
        "inputs": [read_input(one, names) for one in written["inputs"].elts],
        "outputs": outputs,
    }


def read_schemas():
    """Node id -> its texts, inputs and outputs."""
    schemas = {}
    for file in sorted((ROOT / "nodes").glob("*.py")):
        tree = parse(file)
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "io.Schema":
                node_id = next(keyword.value.value for keyword in call.keywords if keyword.arg == "node_id")
                schemas[node_id] = read_schema(call, constants(tree))
    return schemas


SCHEMAS = read_schemas()


def registered_nodes():
    """Class names in the list that the extension gives to ComfyUI."""
    lists = [one for one in ast.walk(parse("nodes/__init__.py")) if isinstance(one, ast.Return)]
    return [name.id for name in lists[0].value.elts]


def locale(language, file):
    return json.loads((LOCALES / language / file).read_text(encoding="utf-8"))


def translation_of(schema):
    """What ComfyUI's translation file of a node has to look like for the schema's own texts."""
    return {
        "display_name": schema["display_name"],
        "description": schema["description"],
        "inputs": {one["id"]: {"name": one["id"], "tooltip": one["tooltip"]} for one in schema["inputs"]},
        "outputs": {
            str(index): {"name": one["display_name"], "tooltip": one["tooltip"]}
            for index, one in enumerate(schema["outputs"])
        },
    }


def texts(tree):
    """All strings of a nested dictionary."""
    return [tree] if isinstance(tree, str) else [text for branch in tree.values() for text in texts(branch)]


def keys(tree):
    return {key: keys(branch) for key, branch in tree.items()} if isinstance(tree, dict) else None


def help_page(node_id):
    return (HELP / f"{node_id}.md").read_text(encoding="utf-8")


def section(page, title):
    """The text below a heading, up to the next heading."""
    return re.split(r"^#+ ", page.split(f"## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text):
    """The cells of a Markdown table's rows, without its head."""
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in table[2:]]


def shown(value):
    """A default as the help pages write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, (int, float)) else f"`{value}`"


def links(page):
    """Targets of a page's relative links, without anchors."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link.split("#")[0] for link in found if "://" not in link and not link.startswith("#")]


def test_the_nodes_that_are_read_here_are_the_nodes_that_are_registered():
    assert len(SCHEMAS) == len(registered_nodes()) > 0


def test_every_node_has_a_help_page_and_every_help_page_a_node():
    assert {page.stem for page in HELP.glob("*.md")} == set(SCHEMAS)


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_a_help_page_is_headed_by_the_nodes_title(node_id):
    assert help_page(node_id).startswith(f"# {SCHEMAS[node_id]['display_name']}\n")


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_a_help_page_lists_the_nodes_inputs_in_their_order(node_id):
    listed = [row[0] for row in rows(section(help_page(node_id), "Inputs"))]
    assert listed == [f"`{one['id']}`" for one in SCHEMAS[node_id]["inputs"]]


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_a_help_page_lists_the_nodes_outputs_in_their_order(node_id):
    listed = [row[0] for row in rows(section(help_page(node_id), "Outputs"))]
    assert listed == [f"`{one['display_name']}`" for one in SCHEMAS[node_id]["outputs"]]


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_a_help_page_tells_the_real_defaults_and_ranges(node_id):
    table = {row[0].strip("`"): row[-1] for row in rows(section(help_page(node_id), "Inputs"))}
    for one in SCHEMAS[node_id]["inputs"]:
        if one["default"] is not None:
            assert table[one["id"]].split(";")[0] == shown(one["default"]), one["id"]
        if one["max"] is not None:
            assert f"{one['min']:g} to {one['max']:g}" in table[one["id"]]


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_a_help_page_says_what_to_do_when_something_goes_wrong(node_id):
    assert rows(section(help_page(node_id), "If something goes wrong"))


@pytest.mark.parametrize(
    ("node_id", "choices"),
    [
        ("DynamicIDLoader", VARIANTS),
        ("DynamicIDFaceAnalysisLoader", [*PROVIDERS, *DOWNLOADABLE]),
        ("DynamicIDEncodeFace", [*ORDERS, *constants(parse("dynamicid_core/comfy_host/encoding.py"))["CROPS"]]),
    ],
)
def test_a_help_page_names_every_choice(node_id, choices):
    inputs = section(help_page(node_id), "Inputs")
    assert [choice for choice in choices if f"`{choice}`" not in inputs] == []


def test_the_english_texts_are_those_of_the_nodes():
    assert locale("en", "nodeDefs.json") == {node_id: translation_of(schema) for node_id, schema in SCHEMAS.items()}


@pytest.mark.parametrize("file", ["nodeDefs.json", "main.json"])
def test_the_chinese_translation_has_every_text_and_no_other(file):
    assert keys(locale("zh", file)) == keys(locale("en", file))


def test_every_description_and_tooltip_is_translated():
    nodes = locale("zh", "nodeDefs.json").values()
    slots = [slot for node in nodes for side in ("inputs", "outputs") for slot in node[side].values()]
    sentences = [node["description"] for node in nodes] + [slot["tooltip"] for slot in slots]
    assert [sentence for sentence in sentences if not CHINESE.search(sentence)] == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_category_has_a_name(language):
    category = constants(parse("nodes/sockets.py"))["CATEGORY"]
    assert locale(language, "main.json")["nodeCategories"].keys() == {category}


@pytest.mark.parametrize("file", sorted(LOCALES.glob("*/*.json")), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_no_text_has_characters_that_comfyuis_translations_read_as_commands(file):
    found = texts(json.loads(file.read_text(encoding="utf-8")))
    assert [text for text in found if set(text) & set("@{}|")] == []


def test_the_readme_begins_with_both_commands():
    opening = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")[0]
    assert [command for command in COMMANDS if command not in opening] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_scripts_named_in_commands_exist(page):
    scripts = re.findall(r"python (scripts/\S+\.py)", (ROOT / page).read_text(encoding="utf-8"))
    assert scripts
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_between_files_lead_somewhere(page):
    assert [link for link in links(page) if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_the_readme_lists_every_node_with_its_help_page():
    listed = rows(section((ROOT / "README.md").read_text(encoding="utf-8"), "Nodes"))
    expected = [f"[{schema['display_name']}](web/docs/{node_id}.md)" for node_id, schema in SCHEMAS.items()]
    assert sorted(row[0] for row in listed) == sorted(expected)


def test_the_readme_explains_every_dependency():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = re.findall(r'"([\w>=.-]+)"', re.search(r"^dependencies = \[(.*?)\]", project, re.M | re.S)[1])
    listed = rows(section((ROOT / "README.md").read_text(encoding="utf-8"), "Dependencies"))
    assert sorted(row[0].strip("`") for row in listed) == sorted(dependencies)


def test_the_changelog_begins_with_the_version_of_the_project():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    assert re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[0] == version


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_tables_are_whole(page):
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    broken = [
        after
        for before, after in pairwise(lines)
        if before.startswith("|") and after.startswith("|") and before.count("|") != after.count("|")
    ]
    assert broken == []
