"""The budgets of docs/performance.md, each as a ratio against a baseline measured in the same run."""
