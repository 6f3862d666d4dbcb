"""The request queue: a limited number of clips run at once, a limited number wait, and the rest are refused."""

import asyncio

import pytest

from asl_triton.errors import ServerError
from asl_triton_ui.state.request_queue import RequestQueue, Ticket


def make_tickets(*visitors: str) -> list[Ticket]:
    tickets = []
    for visitor in visitors:
        ticket = Ticket()
        ticket.visitor = visitor
        tickets.append(ticket)
    return tickets


def test_visitors_take_turns_in_order_and_know_their_place() -> None:
    async def scenario() -> None:
        turns, tickets, order = RequestQueue(at_once=1, waiting=2), make_tickets("ada", "bob", "eve"), []
        done = asyncio.Event()

        async def take(number: int) -> None:
            async with turns.wait_for_turn(tickets[number]):
                order.append(number)
                await done.wait()

        tasks = [asyncio.create_task(take(number)) for number in range(3)]
        await asyncio.sleep(0)
        assert [turns.ahead(ticket) for ticket in tickets] == [None, 0, 1]
        with pytest.raises(ServerError, match="the page is busy, with 2 requests waiting already: try again in"):
            async with turns.wait_for_turn(make_tickets("dan")[0]):
                pass
        tasks[1].cancel()  # a visitor who leaves makes room
        await asyncio.sleep(0)
        assert [turns.ahead(ticket) for ticket in tickets] == [None, None, 0]
        done.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 2]

    asyncio.run(scenario())


def test_one_visitor_can_take_half_of_the_queue() -> None:
    async def scenario() -> None:
        turns, done = RequestQueue(at_once=1, waiting=4), asyncio.Event()

        async def take(ticket: Ticket) -> None:
            async with turns.wait_for_turn(ticket):
                await done.wait()

        tasks = [asyncio.create_task(take(ticket)) for ticket in make_tickets(*["ada"] * 3)]
        await asyncio.sleep(0)
        with pytest.raises(ServerError, match="2 of your clips are waiting already: try again when some are done"):
            await take(make_tickets("ada")[0])
        tasks += [asyncio.create_task(take(ticket)) for ticket in make_tickets("bob", "eve")]
        await asyncio.sleep(0)
        with pytest.raises(ServerError, match="the page is busy, with 4 requests waiting already"):
            await take(make_tickets("dan")[0])
        done.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())
