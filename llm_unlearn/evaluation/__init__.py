"""Measuring what a model knows: run it once (`outputs`), compute on the record (`metrics`), tell (`report`).

`outputs` is the only module here that touches a model and `evaluator` the only one that decides what to run. `metrics`,
`statistics` and `report` need neither torch nor a model, so a stored report can be read and compared in no time.
"""
