"""What a site answers to the server's messages: Flower's ClientApp, the same in a simulation and on a machine."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from tskd.console import warn
from tskd.errors import Paused, RunFailed, UserError, refused_by_system
from tskd.federated.answers import packed
from tskd.federated.messages import ANSWERS, ARRAYS, RESULT, WEIGHT, as_arrays, as_tensors, failed, reply, task_of
from tskd.federated.privacy import clipped
from tskd.federated.reported import numbers_told
from tskd.federated.result import keep_result
from tskd.federated.secure import is_secure, securing, update_to_mask
from tskd.federated.site import Site
from tskd.seeding import derive

OpenSite = Callable[[Context], Site]
"""Returns the site that a node stands for."""
Answer = Callable[[Message, Site], Message]


def build_client_app(open_site: OpenSite) -> ClientApp:
    """Return the app that a site's node runs."""
    app = ClientApp()

    def answered_by(work: Answer) -> Callable[[Message, Context], Message]:
        def answer(message: Message, context: Context) -> Message:
            try:
                site = open_site(context)
                site.require_terms(task_of(message)[1])
                return work(message, site)
            except Paused:  # of a simulation that shares this process: no site pauses by itself
                raise
            except (UserError, RunFailed) as error:
                warn(str(error))
            except OSError as error:
                if error.errno is None:  # of a library, not of the system
                    traceback.print_exc()
                else:
                    warn(refused_by_system(error))
            except Exception:  # noqa: BLE001 whatever it was may name files: it is told here alone
                traceback.print_exc()
            return failed(message)

        return answer

    app.train(mods=[securing(open_site)])(answered_by(_train))
    app.train(ANSWERS)(answered_by(_answer))
    app.evaluate()(answered_by(_validate))
    app.evaluate(RESULT)(answered_by(_keep))
    return app


def _train(message: Message, site: Site) -> Message:
    if site.privacy.secure_aggregation and not is_secure(message):
        raise UserError(f"site {site.name}: the server asks for an update that is not masked; nothing was sent.")
    task, received = task_of(message)[0], as_tensors(_arrays(message))
    learned, numbers = site.learn(task, received)
    if site.privacy.clip is not None:
        learned = clipped(learned, received, site.privacy.clip)
    if site.privacy.noise > 0:  # what no noise covers is not told
        numbers = {WEIGHT: site.weight}
    if is_secure(message):
        seed = derive(site.recipe.seed, site.name, task.round, "rounding")
        return update_to_mask(message, site, learned, received, numbers, seed=seed)
    return reply(message, site.name, as_arrays(learned), numbers)


def _validate(message: Message, site: Site) -> Message:
    if site.privacy.noise > 0:
        raise UserError(f"site {site.name}: the server asks for a score, which no noise covers; nothing was sent.")
    return reply(message, site.name, None, site.validate(task_of(message)[0], as_tensors(_arrays(message))))


def _answer(message: Message, site: Site) -> Message:
    logits, numbers = site.answer()
    assert site.recipe.federated is not None
    sent = packed(logits, site.recipe.federated.answers)
    arrays = ArrayRecord({name: Array(array) for name, array in sent.items()})
    return reply(message, site.name, arrays, numbers)


def _keep(message: Message, site: Site) -> Message:
    """What goes back is that the site has the result, and means over its test images; under noise not these."""
    scores = keep_result(site, task_of(message)[0], as_tensors(_arrays(message)))
    if site.privacy.noise > 0:
        return reply(message, site.name, None, {WEIGHT: site.weight})
    return reply(message, site.name, None, {WEIGHT: site.labelled, **numbers_told(scores)})


def _arrays(message: Message) -> Any:
    return message.content[ARRAYS]
