"""The assignment of faces to people, and its report."""

import re

import numpy as np
import pytest

from dynamicid_core.comparison import compare
from dynamicid_core.errors import InputError
from dynamicid_core.face_analysis import DetectedFace


def found(x):
    return DetectedFace(np.array([x, 0, x + 10, 10], np.float32), 0.9, np.zeros((5, 2), np.float32))


def person(*mix):
    vector = np.zeros(512, np.float32)
    for axis, amount in mix:
        vector[axis] = amount
    return vector / np.linalg.norm(vector)


ANNA, BEN, CARL = (person((axis, 1)) for axis in range(3))


def like(who, amount=0.8):
    axis = int(who.argmax())
    return person((axis, amount), (axis + 100, (1 - amount**2) ** 0.5))


def test_people_in_their_places_are_matched_without_a_warning():
    result = compare([found(0), found(50)], [like(ANNA), like(BEN)], [ANNA, BEN])
    assert result.matches == {0: 0, 1: 1}
    assert result.warnings == []
    assert abs(result.mean_similarity - 0.8) < 1e-5


def test_faces_are_numbered_from_left_to_right_however_they_were_found():
    result = compare([found(50), found(0)], [like(BEN), like(ANNA)], [ANNA, BEN])
    assert [face.centre[0] for face in result.found] == [5, 55]
    assert result.warnings == []


def test_swapped_people_are_reported():
    result = compare([found(0), found(50)], [like(BEN), like(ANNA)], [ANNA, BEN])
    assert result.matches == {0: 1, 1: 0}
    assert result.warnings == ["Faces 1 and 2 have swapped places."]


def test_people_with_places_are_judged_by_them_and_not_by_their_order():
    faces, embeddings = [found(0), found(50)], [like(BEN), like(ANNA)]
    assert compare(faces, embeddings, [ANNA, BEN], places=[(55, 5), (5, 5)]).warnings == []
    swapped = compare(faces, embeddings, [ANNA, BEN], places=[(5, 5), (55, 5)])
    assert swapped.warnings == ["Faces 1 and 2 have swapped places."]
    assert compare(faces, embeddings, [ANNA, BEN], places=[None, (55, 5)]).warnings == []


@pytest.mark.parametrize("people", [[ANNA, ANNA], [ANNA, BEN, ANNA], [BEN, ANNA, ANNA]])
def test_a_person_who_was_placed_twice_may_appear_twice(people):
    places = [(5 + 50.0 * i, 5) for i in range(len(people))]
    faces = [found(50 * i) for i in range(len(people))]
    result = compare(faces, [like(one) for one in people], people, places)
    assert result.matches == {i: i for i in range(len(people))}
    assert result.warnings == []
    once_more = compare([*faces, found(500)], [*(like(one) for one in people), like(ANNA, 0.7)], people, places)
    assert any("appears 3 times" in warning for warning in once_more.warnings)


@pytest.mark.parametrize("lost", [0, 1])
def test_of_a_person_who_was_placed_twice_the_empty_place_is_missing(lost):
    places = [(5, 5), (55, 5)]
    result = compare([found(50 * (1 - lost))], [like(ANNA)], [ANNA, ANNA], places)
    assert result.matches == {1 - lost: 0}
    assert len(result.warnings) == 1
    assert result.warnings[0].startswith(f"Face {lost + 1} is missing")


def test_places_of_one_person_are_not_swapped():
    faces, embeddings = [found(0), found(50), found(100)], [like(ANNA, 0.5), like(ANNA, 0.5), like(ANNA, 0.7)]
    warnings = compare(faces, embeddings, [ANNA, ANNA]).warnings
    assert warnings == ["Face 1 appears 3 times: numbers 1 and 2 and 3."]


def test_the_face_says_who_somebody_is_before_the_place_does():
    twins = [person((0, 1)), person((0, 0.9), (1, 0.43))]
    places = [(55, 5), (5, 5)]
    result = compare([found(0), found(50)], twins, twins, places)
    assert result.matches == {0: 0, 1: 1}
    assert result.warnings == ["Faces 1 and 2 have swapped places."]
    assert len(compare([found(0), found(50)], [twins[0]] * 2, twins, places).warnings) == 1, "twins are two people"


def test_a_person_who_appears_twice_is_reported():
    result = compare([found(0), found(50)], [like(ANNA), like(ANNA, 0.7)], [ANNA, BEN])
    assert "Face 1 appears 2 times: numbers 1 and 2." in result.warnings
    assert any(warning.startswith("Face 2 cannot be recognised") for warning in result.warnings)


def test_the_assignment_is_the_best_for_all_together():
    """The first face is most like Anna, but giving it to Ben and the second to Anna is better for both."""
    first, second = person((0, 0.6), (1, 0.55), (200, 0.5)), person((0, 0.6), (201, 0.8))
    result = compare([found(0), found(50)], [first, second], [ANNA, BEN])
    assert result.matches == {0: 1, 1: 0}


def test_more_people_than_faces_and_the_reverse():
    result = compare([found(0)], [like(BEN)], [ANNA, BEN])
    assert result.matches == {1: 0}
    assert result.warnings == ["Face 1 is missing: the picture shows fewer faces than people."]
    crowd = compare([found(i * 20) for i in range(3)], [like(CARL), like(ANNA), like(BEN)], [ANNA])
    assert crowd.matches == {0: 1}
    assert crowd.warnings == []


def test_a_picture_without_faces_says_so():
    result = compare([], [], [ANNA])
    assert result.mean_similarity == 0
    assert result.warnings == ["No face was found in the picture."]


def test_the_table_marks_the_matches():
    table = compare([found(0), found(50)], [like(ANNA), like(BEN)], [ANNA, BEN]).table()
    assert table.count("*") == 2
    assert "0.800*" in table


def test_siblings_in_one_picture_are_not_taken_for_one_person_twice():
    sister = person((0, 0.5), (1, 0.75**0.5))
    assert compare([found(0), found(50)], [ANNA, sister], [ANNA, sister]).warnings == []


def test_people_who_are_not_recognised_are_not_said_to_have_swapped_places():
    strangers = [person((1, 0.2), (300, 1)), person((0, 0.2), (301, 1))]
    result = compare([found(0), found(50)], strangers, [ANNA, BEN])
    assert result.matches == {0: 1, 1: 0}
    assert not any("swapped" in warning for warning in result.warnings)


def test_a_missing_person_counts_as_no_similarity():
    assert compare([found(0)], [like(BEN)], [ANNA, BEN]).mean_similarity == pytest.approx(0.4)


def test_two_people_at_one_place_cannot_be_swapped():
    at = (30.0, 5.0)
    assert compare([found(0), found(50)], [like(ANNA), like(BEN)], [ANNA, BEN], places=[at, at]).warnings == []


def test_the_table_marks_who_each_face_is():
    seen = [like(CARL), like(ANNA), like(BEN)]
    table = compare([found(0), found(20), found(40)], seen, [ANNA, BEN, CARL]).table()
    assert [cells(line)[1:].index("0.800*") for line in table.splitlines()[2:5]] == [2, 0, 1]


def cells(line):
    """The cells of a row of a Markdown table."""
    assert line.startswith("|")
    assert line.endswith("|")
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_is_markdown_with_a_paragraph_for_each_warning():
    """Preview Any renders Markdown: text outside of tables and paragraphs runs into one line."""
    result = compare([found(0), found(50)], [like(ANNA), like(ANNA, 0.7)], [ANNA, BEN])
    table, *warnings = result.table().split("\n\n")
    head, rule, *rows = table.splitlines()
    assert cells(head) == ["found", "face 1", "face 2"]
    assert all(re.fullmatch("-+:?", cell) for cell in cells(rule))
    assert [cells(row)[0] for row in rows] == ["number 1", "number 2"]
    assert warnings == result.warnings
    assert len(warnings) == 2


def test_the_columns_of_the_table_stand_below_each_other_in_plain_text():
    """Also with ten faces and similarities below 0."""
    opposite = -like(ANNA)
    lines = (
        compare([found(i * 20) for i in range(10)], [opposite] * 10, [ANNA, BEN]).table().split("\n\n")[0].splitlines()
    )
    assert len(lines) == 12
    assert len({tuple(at for at, letter in enumerate(line) if letter == "|") for line in lines}) == 1


def test_the_table_of_a_picture_without_faces_has_its_head_and_the_warning():
    table, warning = compare([], [], [ANNA]).table().split("\n\n")
    assert cells(table.splitlines()[0]) == ["found", "face 1"]
    assert warning == "No face was found in the picture."


def test_people_of_another_embedding_size_are_reported():
    with pytest.raises(InputError, match=r"different sizes \(7, \d+\)"):
        compare([found(0)], [like(ANNA)], [np.ones(7, np.float32)])
