def accumulate(model, window, loss_function):
    """[[Leave the gradient of the window's mean loss in .grad; return that loss.||把窗口平均损失的梯度留在 .grad 里；返回这个损失。]]"""
    total = ...
    return total
