"""A/B runs: answers of two runs of one eval beside each other, judged blind by a model in both orders, and by people.

They are runs of their eval like others (services/api/evals), so the same processes take them up, put them down and go
on with them, and the same store keeps what came of their rows.
"""
