"""The official Python library of Standard Webhooks against a delivery. Argument: a file with its secret, headers and body."""

import json
import sys

from standardwebhooks import Webhook, WebhookVerificationError

delivery = json.load(open(sys.argv[1]))
webhook = Webhook(delivery["secret"])
headers, body = delivery["headers"], delivery["body"]


def refuses(headers, body, webhook=webhook):
    try:
        webhook.verify(body, headers)
    except WebhookVerificationError:
        return True
    return False


event = webhook.verify(body, headers)
assert refuses(headers, body.replace("completed", "failed", 1))
assert refuses({**headers, "webhook-id": "evt_another"}, body)
assert refuses({**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) - 1)}, body)
only_asymmetric = [one for one in headers["webhook-signature"].split() if one.startswith("v1a,")]
assert refuses({**headers, "webhook-signature": " ".join(only_asymmetric)}, body)
assert refuses(headers, body, Webhook("whsec_" + "b3RoZXI=" * 4))
print(event["type"])
