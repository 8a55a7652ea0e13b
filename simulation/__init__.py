"""The world around a federation: data sets, in-process Grid, cohorts, evaluation, baselines and the report."""
