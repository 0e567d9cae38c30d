"""Whether compression pays on a link, and from which speed on."""

import math
from typing import Any

from tightgrad_lab.exercises.model import Case, Draw, Exam, slip


def cases(draw: Draw) -> list[Case]:
    """Links near the break-even of reduced and of gathered messages; some gatherings never pay."""
    found: list[Case] = []
    for index in range(12):
        parameters, processes = draw.integer(5, 300) * 10**6, 16 if index == 1 else draw.pick((2, 4, 8, 16))
        gathered = index % 2 == 1
        factor = draw.real(1.5, 7.5, 2) if index % 4 == 1 else draw.real(4.0, 60.0, 1)
        coding = draw.real(0.01, 0.2)
        exact = right(parameters, processes, 1.0, factor, coding, gathered)["break_even"] or 10.0
        found.append(
            (parameters, processes, round(exact * draw.pick((0.3, 0.6, 1.8, 5.0)), 4), factor, coding, gathered)
        )
    return found


def right(
    parameters: int,
    processes: int,
    gbit: float,
    factor: float,
    coding: float,
    gathered: bool,
    bits: float = 8.0,
    ring: str = "two",
    gather: str = "others",
    width: int = 4,
    counted: bool = True,
    floor: float = 0.0,
    times: float = 1.0,
) -> dict[str, Any]:
    """Return the answer."""
    nbytes, unit = width * parameters, bits
    bandwidth = gbit * 1e9 / unit
    rings = {
        "two": 2 * (processes - 1) / processes,
        "one": (processes - 1) / processes,
        "all": 2.0 * (processes - 1),
        "limit": 2.0,
    }
    dense_share = rings[ring]
    gathers = {"others": processes - 1, "all": processes, "one": 1.0, "ring": dense_share}
    share = (gathers[gather] if gathered else dense_share) / factor
    packed = share * nbytes / bandwidth + (times * coding if counted else 0.0)
    dense = dense_share * nbytes / bandwidth
    break_even = max(floor, (dense_share - share) * nbytes / coding) * unit / 1e9
    return {"dense": dense, "packed": packed, "pays": packed < dense, "break_even": break_even}


EXAM = Exam(
    function="forecast",
    cases=cases,
    right=right,
    slips=(
        slip(
            "a link of 1 Gbit/s carries an eighth of a gigabyte a second: bits are taken for bytes",
            "1 Gbit/s 的链路每秒只能传八分之一 GB：把比特当成字节了",
            bits=1.0,
        ),
        slip(
            "you multiply by 8 where you should divide: a byte has 8 bits, so a link carries fewer bytes than bits",
            "该除以 8 的地方乘了 8：一个字节有 8 个比特，字节数总比比特数少",
            bits=0.125,
        ),
        slip(
            "a gigabit is 10^9 bits, not 2^30",
            "1 Gbit 是 10^9 比特，不是 2^30",
            bits=8e9 / 2**30,
        ),
        slip(
            "the ring passes every piece twice, once to add and once to distribute: the factor 2 is missing",
            "环形全归约要走两轮，一轮相加，一轮分发：漏了系数 2",
            ring="one",
        ),
        slip(
            "gathered messages are not added on the way: each process receives those of all W-1 others",
            "收集的消息不能在途中相加：每个进程要收到另外 W-1 个进程的消息",
            gather="ring",
        ),
        slip(
            "a process need not receive its own message: W-1, not W",
            "进程不必接收自己的消息：是 W-1 份，不是 W 份",
            gather="all",
        ),
        slip(
            "each process receives the messages of all others, not of one",
            "每个进程要收到其他所有进程的消息，不止一份",
            gather="one",
        ),
        slip(
            "in a ring each round moves one piece, m/W, and not the whole gradient",
            "环形全归约每轮只传一段，即 m/W，不是整个梯度",
            ring="all",
        ),
        slip(
            "the ring costs 2 (W-1)/W, which is 2 only for many processes",
            "环形全归约的系数是 2(W-1)/W，进程很多时才接近 2",
            ring="limit",
        ),
        slip("a float32 takes 4 bytes", "一个 float32 占 4 字节", width=1),
        slip(
            "a link has no negative speed: where the packed messages are more than the dense ones it never pays, say 0",
            "链路速度不会是负数：压缩后的消息反而更多时，永远不划算，应当返回 0",
            floor=-math.inf,
        ),
        slip("encoding and decoding take time as well", "编码和解码也要时间", counted=False),
        slip(
            "`coding` covers encoding and decoding already: add it once",
            "`coding` 已经包含编码和解码：只加一次",
            times=2.0,
        ),
    ),
)
