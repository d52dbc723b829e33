"""`npu/ascend`: Huawei Ascend NPUs, through Paddle's custom device."""
