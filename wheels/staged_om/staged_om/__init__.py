"""Detectors as several OM models, because ATC cannot convert a whole one.

A family's `export` program writes one ONNX file per stage and `export_meta.json` (`staged_om.meta`), which holds all
that inference needs: no configuration and no checkpoint is read after that. Device stages run through pyACL, host
stages (`Host` in `staged_om.host`) are functions of the family, in numpy.
"""
