"""What a trial needs that follows from the plan: throw-away neighbours, probes, assumptions, and the report."""
