"""A small text to train the decoder on, written for this purpose, and its split into windows of bytes.

Plain ASCII, one token a byte. Every fourth paragraph is held out, so that what judges is like what trains and never
the same.
"""

import numpy as np
from numpy.typing import NDArray

HOLD_OUT = 4

PARAGRAPHS = (
    "The farm stood at the end of the lane, where the road came down from the hill and met the river. There was a"
    " house with a red roof, a barn with a grey roof, and behind the barn there was a paddock with a white fence.",
    "In the paddock there were four horses. The old mare was grey and slow, and she knew the gate better than the"
    " farmer did. The two brown horses were strong, and they pulled the cart. The young horse was black, and nobody"
    " had put a saddle on him yet.",
    "Every morning the farmer came out of the house with a bucket in his hand. He walked along the fence to the gate,"
    " and the horses came to the gate to meet him. The old mare came first, and the young horse came last.",
    "In the morning the horses stood at the fence and looked at the road. When the cart was ready, the farmer opened"
    " the gate, and the two brown horses went out of the paddock and down the lane to the river.",
    "The farmer had a daughter, and her name was Anna. She came home from the school in the afternoon, and before she"
    " went into the house she went to the paddock. She sat on the fence and talked to the young horse about the day.",
    "The young horse did not come to the fence at first. He stood in the middle of the paddock and looked at her. Then"
    " he came a little nearer, and then a little nearer still, and in the end he stood at the fence and listened.",
    "In the spring the rain came down from the hill. The river was high, and the water stood in the lane, and the"
    " cart could not go to the mill. The horses stayed in the barn, and the farmer mended the harness by the door.",
    "When the rain was over, the sun came out, and the grass in the paddock was green again. The old mare went out of"
    " the barn first. She walked along the fence to the corner by the river, where the grass was always the best.",
    "In the summer the days were long and the nights were short. The farmer cut the hay on the hill, and the two brown"
    " horses brought it down to the barn. They went up the hill with the empty cart, and they came down with the hay.",
    "The miller lived on the other side of the river. He was an old man, and he had a dog and a boat. In the evening"
    " he came over the water in the boat, and he sat with the farmer at the table and talked about the weather.",
    "In the evening the miller said that the winter would be hard. The farmer said that the winter was always hard."
    " Then the miller laughed, and the dog looked up from the floor, and Anna brought the bread to the table.",
    "The dog was afraid of the horses, but the old mare was not afraid of the dog. When the dog came to the fence, she"
    " put her head down and looked at him for a long time, and then the dog went back to the boat and sat in it.",
    "One day the gate was open. Nobody knew who had opened it, for the farmer was on the hill and Anna was at the"
    " school. When the farmer came down with the hay, there were three horses in the paddock, and the young horse was"
    " not there.",
    "The farmer looked in the barn, and he looked in the lane, and he looked along the river. The miller came over the"
    " water in the boat and looked on the other side. They could not find the young horse, and the evening came.",
    "Anna came home from the school, and she heard that the young horse was gone. She did not go into the house. She"
    " took the bucket in her hand and walked up the road to the hill, and she called, and then she stood and listened.",
    "On the hill the wind was cold, and the road was dark. She walked along the old wall to the corner, and there she"
    " stood and called again. Then she heard something on the other side of the wall, and it was the young horse.",
    "The young horse stood by the wall and looked at her. He came a little nearer, and then a little nearer still, and"
    " he put his head in the bucket. Anna laughed, and she put her hand on his neck, and they went down the road.",
    "When they came down the lane, the farmer stood at the gate with a light in his hand. The old mare stood behind"
    " him at the fence. The young horse went into the paddock, and the farmer closed the gate, and nobody said a word.",
    "In the autumn the leaves came down, and the paddock was brown and gold. The farmer put a saddle on the young"
    " horse, and Anna held his head and talked to him. He stood and listened, and he did not move until she had done.",
    "Then Anna sat in the saddle, and the farmer opened the gate. The young horse walked out of the paddock and down"
    " the lane to the river. The miller stood in the boat on the water, and he laughed and took off his hat to her.",
    "In the winter the snow came down from the hill. The paddock was white, and the fence was white, and nobody could"
    " say where the lane was. The horses stood in the barn, and it was warm there, and the hay was dry and good.",
    "Every morning the farmer broke the ice on the water with his hand and brought the hay to the horses. The old mare"
    " came first, and the young horse came last, and the two brown horses stood in the middle and did not hurry.",
    "In the middle of the winter the old mare was ill. She did not come to the door of the barn, and she did not look"
    " at the hay. The farmer sat with her in the night, with a light in his hand, and Anna brought him bread.",
    "In the morning the miller came over the ice with the dog. The dog went into the barn and looked at the old mare"
    " for a long time, and then he sat down in the hay by her head. When the sun came out, she stood up again.",
    "Then the spring came, and the rain came, and the river was high. The old mare went out of the barn first, and"
    " the dog went with her. She walked past the new grass to the old wall, and there the two of them sat in the sun.",
    "There was a new horse in the paddock in the summer, and it was small and grey. It stood by the old mare in the"
    " grass and looked at the road. Nobody had told it about the gate, but it knew the gate before the week was over.",
    "The farmer said that the paddock was too small for five horses. The miller said that a paddock was always too"
    " small. So they took the old fence down and put up a new fence, from the barn to the wall on the hill.",
    "In the evening Anna sat on the new fence and looked at the horses. The sun went down behind the hill, and the"
    " river was gold, and the boat came over the water. She talked to the small horse about the day, and it listened.",
    "When the week was over, the small horse came to the fence every afternoon. It knew the hour when Anna came home"
    " from the school, and it stood at the gate and looked up the road until she came down from the hill.",
    "The farmer made a small saddle in the winter. He sat by the door of the barn with a light, and the dog sat at his"
    " feet, and the miller talked about the weather. Nobody said who the saddle was for, but everybody knew.",
    "In the spring a boy came down the road with a bucket in his hand. He was the son of the smith, and he was small"
    " and did not talk. He stood at the white fence and looked at the horses, and the horses looked at him.",
    "Then the small horse walked up to the boy, looked at him for a long time, and put its head in the bucket. The"
    " boy laughed, and he put his hand on its neck, and Anna came out with the saddle and opened the gate.",
)


def split() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(what trains, what is held out), each the paragraphs' bytes one after another, int64 [N], below 128."""
    kept = [text for number, text in enumerate(PARAGRAPHS) if number % HOLD_OUT != HOLD_OUT - 1]
    held = PARAGRAPHS[HOLD_OUT - 1 :: HOLD_OUT]
    return encode("\n".join(kept)), encode("\n".join(held))


def encode(text: str) -> NDArray[np.int64]:
    """A token a byte, int64 [len(text)]; raises UnicodeEncodeError where the text is not ASCII."""
    return np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64)


def windows(tokens: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """As many windows as fit, side by side and none overlapping, int64 [N // length, length]."""
    count = len(tokens) // length
    return tokens[: count * length].reshape(count, length)
