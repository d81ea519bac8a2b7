"""Subjects of the posters: emoji, their Chinese and English names, measure words and real sizes.

The curated table was named by hand; wider worlds add the emoji whose CLDR name is a plain noun.
`NANO` and `RESERVED` were chosen once, by farthest point in template distance (16 px premultiplied
RGBA, L2), starting from eleven subjects of Chinese culture, and are frozen here: no training run
ever moved them.
"""

import dataclasses
import functools
import re

import emoji


def _table(text: str) -> tuple[str, ...]:
  return tuple(text.split())


# 64 subjects of the nano world; none carries writing.
NANO = _table("""
  🐼 🐉 🏮 🥮 🥟 🧨 🪭 🍵 🪷 🐅 🐇 🎹 🦢 🪣 🌙 🌊
  🦷 🛋️ 🦴 🐬 🎾 🦓 🌈 🧲 🥁 💍 🎐 💻 🎎 👻 🐚 📷
  ✂️ 🍌 👠 🍭 🎲 🎀 🐳 🎧 ⚔️ ⛵ 🍄 ⚓ 🐺 🐪 ❄️ 👖
  🐒 🦄 🦑 🎷 🪁 🛵 🚗 🍺 ✈️ 🧤 🗻 🕊️ 🏆 🔑 💎 📺
""")

# Never rendered in a text-to-image split: they are for reference-image customisation.
RESERVED = _table("""
  👑 📚 🦊 🎡 🥑 🧀 🪐 🦂 🛁 🧩 🎸 🥦 🐍 🎯 🐙 🌭
  🪶 🌸 ⭐ 🚂 🚀 🏯 🐕 🍜 🐏 🦅 ☂️ ☕ 💀 ⏰ 🧶 🥐
""")

CULTURE = frozenset(_table("🐼 🐉 🏮 🥮 🥟 🧨 🪭 🍵 🪷 🫖 🥢 🎋 🍚 🍜 🏯 🪁 🐅 🐇 🐓 🐖 🎐 🍑"))

# emoji | zh | en | zh measure word | real size, 0 = coin .. 6 = mountain | backgrounds it would
# drown in (under 60% of its pixels, or 40% of its rim, over 70 RGB units from the background).
_TABLE = """
🐼|熊猫|panda|只|3|white
🐉|龙|dragon|条|5|green
🏮|红灯笼|red lantern|盏|2|red
🥮|月饼|mooncake|块|1|orange
🥟|饺子|dumpling|个|1|pink beige
🧨|鞭炮|firecracker|串|1|red
🪭|折扇|folding fan|把|1|
🍵|热茶|cup of tea|杯|1|beige
🪷|莲花|lotus|朵|1|pink beige
🫖|茶壶|teapot|个|2|red orange
🐅|老虎|tiger|只|3|orange
🐇|兔子|rabbit|只|2|white pink beige
🐓|公鸡|rooster|只|2|orange
🐍|蛇|snake|条|2|yellow
🐎|马|horse|匹|4|yellow
🐏|公羊|ram|只|3|white pink beige
🐒|猴子|monkey|只|2|
🐂|公牛|ox|头|4|brown
🐀|老鼠|rat|只|1|gray beige
🐖|猪|pig|头|3|pink beige
🐕|狗|dog|只|2|pink beige
🐈|猫|cat|只|2|yellow orange
🐘|大象|elephant|头|5|pink gray beige
🦒|长颈鹿|giraffe|只|5|yellow orange
🦁|狮子|lion|头|3|brown
🦊|狐狸|fox|只|2|orange
🐻|熊|bear|头|4|brown
🐨|考拉|koala|只|2|gray
🐸|青蛙|frog|只|1|
🐧|企鹅|penguin|只|2|brown navy
🦉|猫头鹰|owl|只|2|brown
🦚|孔雀|peacock|只|2|green
🦆|鸭子|duck|只|2|
🦢|天鹅|swan|只|2|white beige
🦩|火烈鸟|flamingo|只|3|pink
🦜|鹦鹉|parrot|只|1|
🕊️|鸽子|dove|只|1|white pink beige
🦅|老鹰|eagle|只|2|brown
🐢|乌龟|turtle|只|2|yellow brown
🐊|鳄鱼|crocodile|条|4|brown
🐳|鲸鱼|whale|头|5|gray cyan
🐬|海豚|dolphin|只|4|blue cyan
🦈|鲨鱼|shark|条|4|gray beige
🐙|章鱼|octopus|只|2|orange
🦀|螃蟹|crab|只|1|orange
🦞|龙虾|lobster|只|1|red
🦑|鱿鱼|squid|只|2|pink
🐠|热带鱼|tropical fish|条|1|yellow orange
🐟|鱼|fish|条|1|blue cyan
🐡|河豚|pufferfish|条|1|pink beige
🐚|海螺|seashell|个|1|white pink beige
🦋|蝴蝶|butterfly|只|0|brown
🐝|蜜蜂|bee|只|0|orange
🐞|瓢虫|ladybug|只|0|red
🐌|蜗牛|snail|只|0|brown
🕷️|蜘蛛|spider|只|0|brown gray
🦂|蝎子|scorpion|只|0|yellow orange
🐜|蚂蚁|ant|只|0|brown
🦓|斑马|zebra|匹|4|navy
🐪|骆驼|camel|头|4|yellow orange
🦘|袋鼠|kangaroo|只|3|orange
🦔|刺猬|hedgehog|只|1|brown
🦇|蝙蝠|bat|只|1|brown
🐄|奶牛|cow|头|4|beige
🦄|独角兽|unicorn|头|4|white pink beige
🦖|霸王龙|T-rex|头|5|
🐿️|松鼠|chipmunk|只|1|
🦏|犀牛|rhinoceros|头|5|gray cyan
🦎|蜥蜴|lizard|只|1|green
🐺|狼|wolf|头|3|gray beige
🍎|苹果|apple|个|1|red orange
🍐|梨|pear|个|1|
🍊|橘子|tangerine|个|1|orange
🍋|柠檬|lemon|个|1|yellow orange
🍌|香蕉|banana|根|1|yellow beige
🍉|西瓜|watermelon|块|2|
🍇|葡萄|bunch of grapes|串|1|purple gray
🍓|草莓|strawberry|颗|0|red
🍒|樱桃|pair of cherries|串|0|red
🍑|桃子|peach|个|1|orange
🍍|菠萝|pineapple|个|1|yellow orange
🥝|猕猴桃|kiwi|个|1|brown
🥥|椰子|coconut|个|1|brown
🥑|牛油果|avocado|个|1|beige
🍆|茄子|eggplant|个|1|purple gray
🥕|胡萝卜|carrot|根|1|orange
🌽|玉米|ear of corn|根|1|yellow orange
🌶️|红辣椒|chili pepper|根|1|red orange
🥦|西兰花|broccoli|棵|1|green
🍄|蘑菇|mushroom|朵|1|red orange
🧅|洋葱|onion|个|1|yellow
🍞|面包|loaf of bread|个|1|orange
🥐|羊角面包|croissant|个|1|yellow orange
🧀|奶酪|wedge of cheese|块|1|yellow orange
🍔|汉堡|hamburger|个|1|yellow orange
🍟|薯条|box of fries|盒|1|
🍕|披萨|slice of pizza|块|1|orange
🌭|热狗|hot dog|个|1|yellow orange
🌮|玉米卷|taco|个|1|yellow
🍙|饭团|rice ball|个|1|white pink beige
🍚|米饭|bowl of rice|碗|1|white
🍜|面条|bowl of noodles|碗|1|white
🍣|寿司|sushi|个|1|
🍡|团子|stick of dango|串|1|pink beige
🍦|冰淇淋|ice cream cone|个|1|white pink beige
🍩|甜甜圈|doughnut|个|1|brown
🍪|曲奇|cookie|块|0|red yellow orange
🎂|生日蛋糕|birthday cake|个|2|pink beige
🧁|纸杯蛋糕|cupcake|个|1|
🍭|棒棒糖|lollipop|根|1|
🍿|爆米花|box of popcorn|盒|1|
🍳|煎蛋|fried egg|个|1|black navy
🥚|鸡蛋|egg|个|0|yellow orange
🍺|啤酒|mug of beer|杯|1|beige
🍷|红酒|glass of wine|杯|1|pink beige
🧋|珍珠奶茶|bubble tea|杯|1|
☕|咖啡|cup of coffee|杯|1|white pink beige
🥢|筷子|pair of chopsticks|双|1|red
🌹|玫瑰|rose|朵|1|red
🌷|郁金香|tulip|朵|1|pink
🌻|向日葵|sunflower|朵|2|yellow orange
🌸|樱花|cherry blossom|朵|0|white pink beige
🌺|木槿花|hibiscus|朵|1|
💐|花束|bouquet|束|2|
🌵|仙人掌|cactus|棵|2|
🌲|松树|pine tree|棵|5|green
🌳|大树|leafy tree|棵|5|
🌴|棕榈树|palm tree|棵|5|brown
🍁|枫叶|maple leaf|片|0|red orange
🍀|四叶草|four-leaf clover|株|0|
🎋|竹枝|bamboo branch|根|3|
🎄|圣诞树|Christmas tree|棵|4|green
🪴|盆栽|potted plant|盆|2|green
☀️|太阳|sun|个|6|yellow orange
🌙|弯月|crescent moon|轮|6|yellow
⭐|星星|star|颗|6|yellow
☁️|云|cloud|朵|5|white beige
🌈|彩虹|rainbow|道|5|orange
⚡|闪电|lightning bolt|道|5|yellow
❄️|雪花|snowflake|片|0|
⛄|雪人|snowman|个|3|white pink beige
🔥|火焰|flame|团|2|orange
💧|水滴|drop of water|滴|0|cyan
🌊|海浪|ocean wave|朵|5|blue
🪐|土星|ringed planet|颗|6|pink beige
🌍|地球|globe|个|6|blue
🌋|火山|volcano|座|6|
🗻|雪山|snowy mountain|座|6|white beige
🚗|汽车|car|辆|4|red
🚌|公交车|bus|辆|5|
🚒|消防车|fire engine|辆|5|red
🚓|警车|police car|辆|4|navy
🚜|拖拉机|tractor|辆|4|
🚲|自行车|bicycle|辆|3|gray
🛵|小摩托|motor scooter|辆|3|
🚂|火车头|locomotive|个|5|
✈️|飞机|airplane|架|5|blue
🚁|直升机|helicopter|架|5|yellow orange
🚀|火箭|rocket|枚|5|
🛸|飞碟|flying saucer|个|5|gray
🎈|气球|balloon|个|1|red orange
⛵|帆船|sailboat|艘|5|orange
🚢|轮船|ship|艘|5|green
⚓|船锚|anchor|个|3|gray cyan
🏠|房子|house|座|5|beige
🏯|城楼|castle tower|座|6|gray
⛩️|牌坊|shrine gate|座|5|red
🗼|铁塔|iron tower|座|6|red
🎡|摩天轮|Ferris wheel|座|6|
⛺|帐篷|tent|顶|4|yellow orange
⛲|喷泉|fountain|座|4|
🗿|石像|stone head statue|尊|5|brown gray
🎁|礼物|gift box|件|2|red orange
🎀|蝴蝶结|ribbon bow|个|1|
🔔|铃铛|bell|个|1|yellow
🥁|鼓|drum|面|2|
🎸|吉他|guitar|把|2|red
🎻|小提琴|violin|把|2|orange
🎺|小号|trumpet|把|2|yellow
🎷|萨克斯|saxophone|支|2|yellow
🎹|琴键|piano keyboard|排|3|white
🎤|话筒|microphone|支|1|gray
🎧|耳机|pair of headphones|副|1|brown
📷|相机|camera|台|1|
📺|电视机|television|台|2|green
💻|笔记本电脑|laptop|台|2|
📱|手机|phone|部|1|black
⌚|手表|wristwatch|块|0|white beige
⏰|闹钟|alarm clock|个|1|white red
⌛|沙漏|hourglass|个|1|
💡|灯泡|light bulb|个|1|yellow
🕯️|蜡烛|candle|支|1|white pink beige
🔑|钥匙|key|把|0|yellow
🔒|锁|padlock|把|0|yellow orange
🔨|锤子|hammer|把|1|brown
✂️|剪刀|pair of scissors|把|1|gray
🧲|磁铁|magnet|块|1|red orange
🔭|望远镜|telescope|架|2|
🔬|显微镜|microscope|台|2|gray cyan
🧭|指南针|compass|个|0|white yellow
⚽|足球|soccer ball|个|1|white
🏀|篮球|basketball|个|1|orange
🎾|网球拍|tennis racket|副|1|
🏓|乒乓球拍|ping-pong paddle|副|1|red orange
🏸|羽毛球|badminton set|副|1|
🪁|风筝|kite|只|2|orange
🎯|靶子|target|个|2|red
🧩|拼图|puzzle piece|块|0|green
🎲|骰子|die|个|0|white pink beige
🧸|泰迪熊|teddy bear|只|2|red brown
🤖|机器人|robot|个|3|gray
👻|幽灵|ghost|个|3|white pink beige
👽|外星人|alien|个|3|gray beige
🎃|南瓜灯|pumpkin lantern|个|2|orange
💀|骷髅头|skull|个|1|white beige
👑|皇冠|crown|顶|1|yellow orange
💎|宝石|gem|颗|0|white
💍|戒指|ring|枚|0|beige
👓|眼镜|pair of glasses|副|1|brown gray
👒|草帽|straw hat|顶|1|yellow
🎩|礼帽|top hat|顶|1|black navy
👗|连衣裙|dress|条|2|blue
👕|T恤|T-shirt|件|2|white beige
👖|牛仔裤|pair of jeans|条|2|blue
👟|运动鞋|sneaker|只|1|blue
👠|高跟鞋|high-heeled shoe|只|1|red orange
🧤|手套|pair of gloves|副|1|gray cyan
🧣|围巾|scarf|条|2|red orange
☂️|雨伞|umbrella|把|2|blue
🎒|书包|backpack|个|2|red orange
💼|公文包|briefcase|个|2|brown
📚|书堆|stack of books|摞|1|
✏️|铅笔|pencil|支|0|yellow orange
🖌️|画笔|paintbrush|支|0|blue
🎨|调色盘|artist palette|个|1|yellow orange
🏆|奖杯|trophy|座|2|yellow orange
❤️|红心|red heart|颗|1|red orange
🛡️|盾牌|shield|面|2|gray beige
⚔️|双剑|pair of crossed swords|对|2|
🏹|弓箭|bow and arrow|副|2|
🪑|椅子|chair|把|3|orange brown
🛋️|沙发|sofa|张|4|blue cyan
🚪|门|door|扇|4|red brown
🛁|浴缸|bathtub|个|4|white beige
🧹|扫帚|broom|把|2|yellow
🪣|水桶|bucket|个|2|
🧼|肥皂|bar of soap|块|0|pink beige
🪆|套娃|nesting doll|个|1|
🎐|风铃|wind chime|个|1|
🍥|鱼板|fish cake slice|片|0|white pink beige
🦷|牙齿|tooth|颗|0|white beige
👁️|眼睛|eye|只|0|brown
🪶|羽毛|feather|根|0|brown
🌰|栗子|chestnut|颗|0|brown
🥜|花生|pair of peanuts|颗|0|yellow orange
🥞|松饼|stack of pancakes|摞|1|orange
🦴|骨头|bone|根|1|white pink beige
🧊|冰块|ice cube|块|0|cyan
🧶|毛线球|ball of yarn|团|1|red
🪨|石头|rock|块|2|gray
🪵|木头|log|根|3|brown
🎎|人偶|pair of dolls|对|1|
"""

# CLDR names that are signs, faces, gestures, people, scenes or odd in Chinese; or carry writing.
_NOT_A_THING = re.compile(
  r"button|arrow|symbol|sign\b|_sign|face|clock|thirty|square|circle|diamond|hand|finger|"
  r"person|people|man\b|men\b|woman|women|boy|girl|child|flag|heart|card|moon|sun\b|sun_|"
  r"mark|Aries|Taurus|Gemini|Cancer|Leo|Virgo|Libra|Scorpi|Ophiuchus|Sagitt|Capricorn|"
  r"Aquarius|Pisces|no_|input|medal|calendar|chart|dollar|banknote|yen|level|recycl|cross|"
  r"keycap|point|fist|thumb|palm|kiss|couple|family|cat_|monkey_|globe|mailbox|atm|ATM|ZZZ|"
  r"ON!|badge|label|slot|pool_8|newspaper|memo|receipt|ticket|notes?\b|score|plus|minus|"
  r"divide|multiply|infinity|wavy|loop|dvd|disk|litter|water_closet|restroom|customs|"
  r"control|baggage|luggage|antenna|vibration|mobile_phone_|cinema|anger|hundred|book|page|"
  r"clipboard|ledger|spiral_calendar|spiral_note|envelope|e-mail|tray|package|money|mahjong|"
  r"joker|suit|wheel_of|om$|khanda|menorah|yin|peace|atom|trident|fleur|beginner|"
  r"hot_springs|information|exclamation|question|post_office|hospital|bank$|hotel|store|"
  r"school$|police|taxi|ambulance|bus_stop|stop|construction|selfie|nail|ear$|ear_with|nose|"
  r"leg$|foot$|tongue|mouth|lungs|organ|busts?|speaking|footprints|deaf|baby$|older|adult|"
  r"guard|detective|ninja|worker|prince|royal|Claus|super|mage|fairy|vampire|mer|elf|genie|"
  r"zombie|troll|dancing|levitating|wrestl|hugging|skier|snowboard|horse_|copyright|"
  r"registered|not_done|check|radioactive|biohazard|warning|asterisk|star_of|sparkles?|"
  r"foggy|rise|sunset|dusk|night|milky|cloud_|fog$|tornado|cyclone|cityscape|houses|"
  r"with_garden|national|camping|beach_|wedding|collision|sweat|dashing|dizzy|balloon$|"
  r"exchange|seat$|ring_buoy|speaker|locked|link$|slash|speech|thought|map|vulcan|horns|"
  r"star-struck|exploding|rolling_on|breast|cat$|grinning|pouting|weary|monkey|station|"
  r"oncoming|prohibited|potable|worship|elevator|wireless|departure|arrival|poo$|flexed|"
  r"collision|letter$|milk_|bubbles|biting|pouring|hockey$|game$|football|bowling|skis|"
  r"performing|clinking|fork_|bottle_with|canned|film_frames|rosette|reminder|pin$|"
  r"round_push|hair|drop_|baseball|film|coin$|curling|waxing|waning|battery|videocassette|"
  r"fax|pager|hatching|front_facing|front-facing|ewe|two-hump|dodo|kaaba|mosque|synagogue|"
  r"temple|church|coffin|funeral|gun|pistol|cigarette|syringe|hole|microbe|brain|kimono|"
  r"bikini|briefs|sari|martial|ogre|goblin|angel|alien_|nazar|hamsa|goggles|low_|headstone|"
  r"umbrella_on|urn|scroll|party|confetti|splatter|stadium|derelict|office|factory|building|"
  r"ballot|boar|bug$|worm|cockroach|fly$|mosquito|crescent$|love-you|linked|fluttering|ice_skate|pawn"
  r"|sauropod|suspension|utility|shower|chains|fireworks|prints|eyes|beans|berries|socks|shorts"
  r"|beads|bags|shoes|sunglasses|maracas|roller_skate|shooting|motorway|desert$|railway_track"
  r"|black_nib|sewing|mate$|oden"
)

_PLURALS = {
  "die": "dice",
  "wolf": "wolves",
  "fish": "fish",
  "tropical fish": "tropical fish",
  "pufferfish": "pufferfish",
  "tooth": "teeth",
  "loaf": "loaves",
  "maple leaf": "maple leaves",
  "ox": "oxen",
  "snowman": "snowmen",
  "scarf": "scarves",
  "sushi": "sushi",
  "broccoli": "broccoli",
  "volcano": "volcanoes",
}


@dataclasses.dataclass(frozen=True)
class Subject:
  """One thing to draw.

  Attributes:
    emoji: what the emoji font is asked for.
    zh: Chinese noun.
    en: English noun, singular, without article.
    measure: Chinese measure word.
    rank: real-world size class, 0 (coin) to 6 (mountain).
    avoid: names of backgrounds it cannot be told from.
  """

  emoji: str
  zh: str
  en: str
  measure: str = "个"
  rank: int = 2
  avoid: frozenset[str] = frozenset()

  @property
  def article(self) -> str:
    """ "a" or "an"."""
    return "an" if self.en[0] in "aeioAEIO" or self.en.startswith(("umbrella", "hour")) else "a"

  @property
  def plural(self) -> str:
    """English plural: "pandas", "pairs of gloves", "boxes of fries"."""
    head, of, tail = self.en.partition(" of ")
    if head in _PLURALS:
      head = _PLURALS[head]
    elif head.endswith(("s", "x", "ch", "sh")):
      head += "es"
    elif head.endswith("y") and head[-2] not in "aeiou":
      head = head[:-1] + "ies"
    else:
      head += "s"
    return head + of + tail


def _curated() -> dict[str, Subject]:
  out = {}
  for line in _TABLE.strip().splitlines():
    char, zh, en, measure, rank, avoid = line.split("|")
    out[char] = Subject(char, zh, en, measure, int(rank), frozenset(avoid.split()))
  return out


CURATED = _curated()


@functools.cache
def everything() -> dict[str, Subject]:
  """The curated subjects, then the emoji up to Unicode 15 whose CLDR name is a plain noun."""
  emoji.config.load_language("zh")
  out = dict(CURATED)
  zh_names, en_names = {s.zh for s in out.values()}, {s.en for s in out.values()}
  for char, data in sorted(emoji.EMOJI_DATA.items()):
    # Version 15 is what Debian 12's font draws.
    name = data["en"].strip(":")
    single = (
      len(char.replace("\ufe0f", "")) == 1 and data["status"] == emoji.STATUS["fully_qualified"]
    )
    if char in out or not single or data["E"] > 15 or "zh" not in data or _NOT_A_THING.search(name):
      continue
    zh, en = data["zh"].strip(":").replace("_", ""), name.replace("_", " ").replace("’", "")
    if zh in zh_names or en in en_names or not re.fullmatch(r"[\u4e00-\u9fff]+", zh):
      continue
    zh_names.add(zh)
    en_names.add(en)
    out[char] = Subject(char, zh, en)
  return out


def lookup(char: str) -> Subject:
  """The subject drawn by `char`."""
  return CURATED[char] if char in CURATED else everything()[char]
