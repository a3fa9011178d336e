"""Turns the numbers of a run into values that JSON has."""
import math
from typing import Any


def plain_json(value: Any) -> Any:
    """Tensors and numpy numbers as Python numbers, at any depth; NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if hasattr(value, "tolist"):
        return plain_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
