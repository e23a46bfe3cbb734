"""The miniature's recipe: data, every stage of training, measuring (python -m dynamicid_core.training miniature)."""
