"""Federated training: several sites adapt one teacher, or teach one student, and no image leaves any of them.

Flower carries the messages. No module imports it at the top but those where sites exchange
something, so that nothing else needs the extra ``federated``.
"""

from __future__ import annotations

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # Flower reads it when it is imported; by default it reports its use
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
