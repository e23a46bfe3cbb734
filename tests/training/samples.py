"""Synthetic samples, and small data sets of them."""

import numpy as np

from dynamicid_core.training.data.sample import Sample, sample_key, to_record
from dynamicid_core.training.data.shards import ShardWriter

SETTINGS = {"made_by": "a test", "size": 16}


def sample(name, number, size=16):
    """A picture of a person, the same each time."""
    rng = np.random.default_rng([*name.encode(), number])
    smooth = np.linspace(0, 255, size)[:, None] * np.ones(size) * rng.uniform(0.3, 1)
    return Sample(
        key=sample_key(name, number),
        identity=name,
        picture=np.stack([smooth, smooth.T, 255 - smooth], axis=-1).astype(np.uint8),
        caption="a photo of a person with ü",
        face_prompt="in a happy expression, in front view",
        expression="happy",
        pose=rng.normal(size=3).astype(np.float32),
        keypoints=rng.uniform(0.1, 0.9, (106, 2)).astype(np.float32),
        embedding=rng.normal(size=512).astype(np.float32),
        embedding_rgb=rng.normal(size=512).astype(np.float32),
        labels={"actions": {"jawOpen": 0.5}},
    )


def write(folder, people, shard_size=3, before_each=lambda name: None):
    """Adds all people who are not done yet to a data set. people: name -> number of photos."""
    with ShardWriter(folder, SETTINGS, shard_size=shard_size) as writer:
        for name, count in people.items():
            if name not in writer.done:
                before_each(name)
                samples = (sample(name, number) for number in range(count))
                writer.add(name, {one.key: to_record(one) for one in samples}, {"photos": count})
    return folder


def keys(samples):
    return [one.key for one in samples]
