import torch


def accumulate(model, window, loss_function):
    """[[Leave the gradient of the window's mean loss in .grad; return that loss.||把窗口平均损失的梯度留在 .grad 里；返回这个损失。]]"""
    counts = [int((labels != -100).sum()) for _, labels in window]
    items = sum(counts)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    total = 0.0
    for (inputs, labels), count in zip(window, counts):
        if count == 0:
            continue
        loss = loss_function(model(inputs), labels) * count / items
        loss.backward()
        total += loss.item()
    return total
