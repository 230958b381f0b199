"""The pipeline on a schedule: Prefect flows over the stages. The only place that knows Prefect.

Nothing is pickled. Results live in run directories, so flows and tasks persist none; what a flow failed with,
which Prefect always stores, is stored as JSON.
"""
