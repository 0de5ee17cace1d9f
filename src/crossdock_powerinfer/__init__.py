"""PowerInfer: which FFN neurons go to the GPU. Statistics in, the best choice and its proof out.

PowerInfer keeps the hot neurons of ReLU models on the GPU; a small file says which (`crossdock_powerinfer.gpuidx`).
"""
