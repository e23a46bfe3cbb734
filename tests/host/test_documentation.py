"""Help pages, English texts and README against the nodes as ComfyUI knows them."""

import nodes as host_nodes
import pytest

from tests.documents import HELP, ROOT, help_page, locale, rows, section, shown


def read_input(one):
    limits = {name: getattr(one, name, None) for name in ("default", "min", "max")}
    return {"id": one.id, "tooltip": one.tooltip, "options": getattr(one, "options", None), **limits}


def read_schema(schema):
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "category": schema.category,
        "inputs": [read_input(one) for one in schema.inputs],
        "outputs": [{"display_name": one.display_name, "tooltip": one.tooltip} for one in schema.outputs],
    }


SCHEMAS = {
    name: read_schema(cls.define_schema())
    for name, cls in host_nodes.NODE_CLASS_MAPPINGS.items()
    if name.startswith("DynamicID")
}
FROM_DISK = {
    ("DynamicIDLoader", "adapter"),
    ("DynamicIDLoadFace", "name"),
    ("DynamicIDLoadKeypoints", "name"),
    ("DynamicIDFaceAnalysisLoader", "pack"),
}


def translation_of(schema):
    """The entry of a node in ComfyUI's translation file that matches the schema's own texts."""
    return {
        "display_name": schema["display_name"],
        "description": schema["description"],
        "inputs": {one["id"]: {"name": one["id"], "tooltip": one["tooltip"]} for one in schema["inputs"]},
        "outputs": {
            str(index): {"name": one["display_name"], "tooltip": one["tooltip"]}
            for index, one in enumerate(schema["outputs"])
        },
    }


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
        if one["default"] is not None and (node_id, one["id"]) not in FROM_DISK:
            assert table[one["id"]].split(";")[0] == shown(one["default"]), one["id"]
        if one["max"] is not None:
            assert f"{one['min']:g} to {one['max']:g}" in table[one["id"]]


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_a_help_page_says_what_to_do_when_something_goes_wrong(node_id):
    assert rows(section(help_page(node_id), "If something goes wrong"))


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_a_help_page_names_every_choice(node_id):
    inputs = section(help_page(node_id), "Inputs")
    for one in SCHEMAS[node_id]["inputs"]:
        if one["options"] and (node_id, one["id"]) not in FROM_DISK and one["id"] not in ("imr", "keypoint_encoder"):
            assert [choice for choice in one["options"] if f"`{choice}`" not in inputs] == []


def test_the_english_texts_are_those_of_the_nodes():
    assert locale("en", "nodeDefs.json") == {node_id: translation_of(schema) for node_id, schema in SCHEMAS.items()}


def test_the_readme_lists_every_node_with_its_help_page():
    listed = rows(section((ROOT / "README.md").read_text(encoding="utf-8"), "Nodes"))
    expected = [f"[{schema['display_name']}](web/docs/{node_id}.md)" for node_id, schema in SCHEMAS.items()]
    assert sorted(row[0] for row in listed) == sorted(expected)


def test_the_category_has_a_name_in_every_language():
    for language in ("en", "zh"):
        categories = {schema["category"] for schema in SCHEMAS.values()}
        assert locale(language, "main.json")["nodeCategories"].keys() == categories
