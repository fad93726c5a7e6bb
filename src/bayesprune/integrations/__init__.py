from typing import TYPE_CHECKING

from bayesprune.common.lazy import lazy

if TYPE_CHECKING:
    from bayesprune.integrations.attachment import Attachment
    from bayesprune.integrations.lightning import LightningCallback
    from bayesprune.integrations.pretrained import PretrainedFolder, save_pretrained
    from bayesprune.integrations.transformers import TransformersCallback

__all__ = ["LightningCallback", "TransformersCallback", "Attachment", "save_pretrained", "PretrainedFolder"]

__getattr__ = lazy(
    __name__,
    {
        "bayesprune.integrations.lightning": "LightningCallback",
        "bayesprune.integrations.transformers": "TransformersCallback",
        "bayesprune.integrations.attachment": "Attachment",
        "bayesprune.integrations.pretrained": "save_pretrained PretrainedFolder",
    },
)
