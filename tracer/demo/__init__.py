"""A small Kubernetes node without Kubernetes: real processes in real cgroups, and a kubelet's list of them.

``node`` is what others use: it forks the stage, serves the stage's pod list and clears everything away. ``stage`` is
what a kubelet and a runtime do (cgroups, processes, statuses), ``play`` who appears when, ``pods`` the records and
their JSON.
"""
