"""Federated training: several sites adapt one teacher, or teach one student, and no image leaves any of them.

Flower carries the messages. No module imports it at the top but those where sites exchange
something, so that nothing else needs the extra ``federated``.
"""
