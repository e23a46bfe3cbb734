"""Handles for ComfyUI's page: nodes are added and linked by script, boxes are used as a person would."""

import pytest

PLACE_FACE = "DynamicIDPlaceFace"
FIELDS = ("x", "y", "width", "height")
BOX = (0.25, 0.1, 0.5, 0.8)
SMALL = (0.4, 0.4, 0.2, 0.2)
# Of the graph that is shown, which may be a subgraph.
NODE = "const node = window.app.canvas.graph.getNodeById(id);"
MUTED, BYPASSED = 2, 4
WIDGET = f"{NODE} const widget = node.widgets.find(widget => widget.name === name);"


class Graph:
    """The graph on the page."""

    def __init__(self, page):
        self.page = page
        self.session = None

    # --- nodes -------------------------------------------------------------------------------------------------------

    def add(self, kind, position, title=None, **values):
        """Id of a new node."""
        node = self.page.evaluate(
            """([kind, position, title]) => {
                const node = window.LiteGraph.createNode(kind);
                if (title) node.title = title;
                node.pos = position;
                window.app.graph.add(node);
                return node.id;
            }""",
            [kind, position, title],
        )
        for name, value in values.items():
            self.set(node, name, value)
        self.settle()
        return node

    def add_place_face(self, box=None, position=(120, 160), title=None):
        return self.add(PLACE_FACE, position, title, **dict(zip(FIELDS, box or (), strict=bool(box))))

    def connect(self, origin, target, name, output=0):
        self.page.evaluate(
            """([origin, output, target, name]) => {
                const [from, to] = [origin, target].map(id => window.app.graph.getNodeById(id));
                from.connect(output, to, to.inputs.findIndex(input => input.name === name));
            }""",
            [origin, output, target, name],
        )
        self.settle()

    def set(self, node, name, value):
        """Change a number as a script does: without any event."""
        self.page.evaluate(f"([id, name, value]) => {{ {WIDGET} widget.value = value }}", [node, name, value])

    def get(self, node, name):
        return self.page.evaluate(f"([id, name]) => {{ {WIDGET} return widget.value }}", [node, name])

    def numbers(self, node):
        return tuple(self.get(node, name) for name in FIELDS)

    def set_mode(self, node, mode):
        """Mute or bypass a node."""
        self.page.evaluate(f"([id, mode]) => {{ {NODE} node.mode = mode }}", [node, mode])
        self.settle()

    def ids(self, kind):
        return self.page.evaluate("kind => window.app.graph.findNodesByType(kind).map(node => node.id)", kind)

    def saved(self):
        return self.page.evaluate("() => JSON.parse(JSON.stringify(window.app.graph.serialize()))")

    def node_position(self, node):
        return self.page.evaluate(f"id => {{ {NODE} return [...node.pos] }}", node)

    # --- subgraphs ---------------------------------------------------------------------------------------------------

    def make_subgraph(self, *nodes):
        """The id of the node that replaces some nodes."""
        return self.page.evaluate(
            """ids => {
                const {graph} = window.app;
                return graph.convertToSubgraph(new Set(ids.map(id => graph.getNodeById(id)))).node.id;
            }""",
            nodes,
        )

    def open_subgraph(self, node):
        """Open the subgraph: nodes are then those inside."""
        self.page.evaluate(f"id => {{ {NODE} window.app.canvas.openSubgraph(node.subgraph, node) }}", node)
        self.show_at_natural_size()

    def close_subgraphs(self):
        self.page.evaluate("() => window.app.canvas.setGraph(window.app.graph)")
        self.settle()

    # --- the page ----------------------------------------------------------------------------------------------------

    def view(self):
        """Scale and offset of the graph."""
        return self.page.evaluate("() => [window.app.canvas.ds.scale, ...window.app.canvas.ds.offset]")

    def show_at_natural_size(self):
        self.page.evaluate("() => { const {ds} = window.app.canvas; ds.scale = 1; ds.offset = [0, 0]; }")
        self.settle()

    def remember(self):
        """Sets the point that undo returns to."""
        self.page.evaluate("() => { window.app.canvas.emitBeforeChange(); window.app.canvas.emitAfterChange(); }")
        self.page.wait_for_timeout(100)  # later interfaces add what changes within 50 ms

    def undo(self, node, x):
        """Undo the last change, until a node has a value of x again."""
        self.page.keyboard.press("Control+z")
        self.page.wait_for_function(f"([id, x]) => {{ {NODE} return node?.widgets[0].value === x }}", arg=[node, x])

    def settle(self):
        """Wait until the page has been redrawn."""
        self.page.evaluate(
            """async () => {
                window.app.canvas.setDirty(true, true);
                for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
            }"""
        )

    # --- the editor --------------------------------------------------------------------------------------------------

    def stage(self, node):
        """The picture of the layout on a node."""
        find = "return node.widgets.find(widget => widget.name === 'box_editor').element.querySelector('svg')"
        return self.page.evaluate_handle(f"id => {{ {NODE} {find} }}", node).as_element()

    def message(self, node):
        """The line below the picture."""
        return self.stage(node).evaluate("stage => stage.parentElement.querySelector('.dynamicid-message').textContent")

    def drawn(self, node, of=None):
        """The box of a node, or of another one, as its picture shows it, in fractions."""
        self.settle()
        box = self.stage(node).evaluate(
            """(stage, id) => {
                const frame = stage.getBoundingClientRect();
                const box = stage.querySelector(`[data-node="${id}"] .dynamicid-box`)?.getBoundingClientRect();
                return box && [
                    (box.left - frame.left) / frame.width, (box.top - frame.top) / frame.height,
                    box.width / frame.width, box.height / frame.height,
                ];
            }""",
            of or node,
        )
        return box and tuple(box)

    def point(self, node, x, y):
        """Where on the screen a point of the picture is."""
        frame = self.stage(node).bounding_box()
        return frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]

    def press(self, node, start, end):
        """Drag with the mouse and keep the button down."""
        self.page.mouse.move(*self.point(node, *start))
        self.page.mouse.down()
        self.page.mouse.move(*self.point(node, *end), steps=4)

    def drag(self, node, start, end):
        self.press(node, start, end)
        self.page.mouse.up()
        self.settle()

    def touch(self, kind, *points):
        """Fingers on the screen, the first one first."""
        self.session = self.session or self.page.context.new_cdp_session(self.page)
        places = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(points)]
        self.session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    def keys(self, node, *keys):
        """Press keys while the picture has the focus."""
        self.stage(node).focus()
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()


def near(box):
    """Within a line's width on the screen."""
    return pytest.approx(box, abs=0.012)


def layout(graph, first=(0.05, 0.2, 0.4, 0.7), second=(0.5, 0.1, 0.45, 0.8), size=(768, 512)):
    """Two people, the sampler they are for, and its latent. Ids of both Place Face nodes and of the latent."""
    anna = graph.add_place_face(first, title="Anna")
    ben = graph.add_place_face(second, position=(480, 160), title="Ben")
    apply = graph.add("DynamicIDApply", (840, 160))
    sampler = graph.add("KSampler", (1120, 160))
    latent = graph.add("EmptyLatentImage", (840, 560), width=size[0], height=size[1])
    graph.connect(anna, ben, "placements")
    graph.connect(ben, apply, "faces")
    graph.connect(apply, sampler, "model")
    graph.connect(latent, sampler, "latent_image")
    return anna, ben, latent
