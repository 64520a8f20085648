"""What a gateway asks of the Kubernetes API server, by the `kubernetes` client, and tells it.

Nothing else imports that client: it is imported only where --discovery kubernetes is chosen.
"""
