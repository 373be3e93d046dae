"""WINO+: collect the trajectories of verified answers, train a model to follow their order, merge it.

docs/spec.md section 5.

Needs ``pip install 'wino-kernels[plus]'``; what only needs records imports less.
"""
