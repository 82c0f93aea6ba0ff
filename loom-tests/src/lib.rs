//! Helpers shared by the models in `tests/`.
