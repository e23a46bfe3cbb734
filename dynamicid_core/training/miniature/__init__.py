"""The miniature's recipe: data, all training stages, measuring (python -m dynamicid_core.training miniature)."""
