"""What posters say: characters, real words and random strings, in Chinese and English.

The nano world writes 128 characters (96 by frequency and festival, 16 look-alike pairs), and a few
that are kept rare on purpose: in a 160,000-image train split FEW_SHOT are seen 30-300 times each,
RARE under 20 times.
"""

import functools


def _table(text: str) -> tuple[str, ...]:
  """Words between spaces; "_" stands for a space within one."""
  return tuple(word.replace("_", " ") for word in text.split())


FREQUENT = (
  "春福喜寿财吉祥龙年月花茶灯红金双乐安康家和平好新快中秋国风云山水火心爱美梦光雨雪星海江河"
  "东西南北上下小多长生明白鱼马羊虎竹梅兰酒饭米书画诗歌学友女子门城路车手口成功发百一二三五"
  "有无笑夜晚早团圆"
)
LOOK_ALIKES = _table("""
  未末 土士 日曰 己已 人入 大太 天夫 王玉 木本 牛午 干千 刀力 鸟乌 田由 今令 万方
""")
NANO_CHARS = FREQUENT + "".join(LOOK_ALIKES)
FEW_SHOT = "桥柳鹤莲船泉松窗雁鼓钟琴"
RARE = "鼎麟曦霁"

# Look-alikes beyond the sixteen, for glyph negatives: each entry is one family.
FAMILIES = LOOK_ALIKES + _table("""
  戊戌戍成 免兔 目自 贝见 又叉 问间 折拆 拔拨 晴睛 清请 侍待 蓝篮 辛幸 困因 晚挽 梅海 柳抑 雪雷
  星早 昌冒 泉帛 鼓彭 松枞 琴瑟 莲连 船般 桥骄 窗囱 雁应 钟种 鹤鹊 水永冰氷 小少 心必 云去 山出
  上土止 下卞 白百自 月用 中申 国围 安妥 家冢 和知 平乎 好妤 新亲 快决 秋秩 风凤 火灭 爱受 美羊
  光尖 雨两 江汪 河何 东车 西酉 南甫 北比 多名 长民 生主 明朋 鱼田 马乌 虎虚 竹行 兰三 酒洒 饭饮
  米来 书节 画面 诗待 歌欧 学字 友反 女安 子了 门们 城域 路跑 手毛 口囗回 功切 发友 一二三 五互
  有看 无元 笑竺 夜液 团困 圆圈 春舂 福副 喜嘉 寿春 财材 吉古 祥洋 龙尤 年午 花化 茶荼 灯打 红江
  金全 双又 乐东 康庚 鼎帛 麟磷 曦羲 霁雾
""")

# Two-character words; `nano_zh_words` keeps those the nano vocabulary can write.
ZH_WORDS = _table("""
  新年 新春 春天 春雨 春风 春花 春秋 早春 中秋 中国 团圆 平安 快乐 吉祥 安康 天天 和平 美好 美梦
  美女 花鸟 山水 风云 风雨 风光 风车 火车 火花 火山 火星 雪山 雪花 雪人 雪白 雨水 雨夜 下雨 下雪
  星光 星夜 星海 海上 海南 海鱼 海马 海星 江南 江山 江河 河南 河北 河马 河山 东西 东南 西北 南北
  东北 西南 上下 大小 大人 大王 大家 大海 大学 大门 大手 大山 大地 大方 大火 小鸟 小鱼 小马 小羊
  小人 小路 小学 小心 小手 小王 小米 小说 长江 长生 长城 长寿 生日 生长 明天 明白 明日 今天 今日
  今年 今晚 今夜 早晚 早安 晚安 早上 晚上 早饭 晚饭 夜晚 夜海 白天 白云 白雪 白马 白酒 红花 红茶
  红酒 红灯 红梅 红日 花灯 花茶 花城 花木 花生 茶花 米饭 米酒 米花 书画 书本 诗书 诗人 诗歌 学子
  学友 女子 女人 女士 女王 女生 夫人 人人 国王 国人 国画 国花 国家 家人 家书 心爱 爱心 爱人 爱国
  人心 人口 人家 入口 入门 入学 入夜 门口 路口 路人 马路 马车 马上 牛马 牛羊 羊年 马年 牛年 龙年
  虎年 年年 龙门 龙虎 成功 成人 成家 发财 发光 发明 百年 百花 千年 千万 千里 千山 万年 万一 万人
  万里 一万 一百 一千 一心 一路 一年 一月 一日 一生 二月 三月 五月 五福 双喜 双鱼 双子 双方 有无
  有心 无心 东方 北方 南方 西方 上方 下方 本子 本人 本土 土木 木马 木本 力士 大力 火力 水力 功力
  玉米 玉山 金玉 金鱼 金牛 金马 金山 金秋 金花 金色 梅花 兰花 竹子 竹马 天山 天上 天下 天子 天马
  太平 太太 未成 末日 末年 自己 水田 水手 水车 水牛 福星 寿星 喜乐 乐天 心中 友人 友爱 好友 好人
  好心 好书 好梦 歌手 歌女 画家 画中 秋天 秋水 秋月 秋风 秋雨 光明 水光 月光 日光 灯光 灯火 星火
  云南 云山 云海 明月 明星 明灯 明年 春城 春江 江水 海水 山河 山城 山茶 山羊 云雨 竹叶 火红 光年
  月夜 月饼 中午 上午 下午 日本 日月 日子 心火 心上 手心 手下 干手 千金 百万 百家 百福 百合 三千
  三国 福禄 天花 土豆 田园 鸟人 鱼水 鱼米 虎牛 王子 王国 玉女 红玉 美玉 美人 美酒 美好 生平 生鱼
  长年 长白 安乐 安家 安好 和乐 和美 和好 康乐 家乐 国安 国乐 梦中 美月 爱梦 早日 早年 笑口 团年
  圆月 圆梦 花好 月圆
""")

ZH_PHRASES = _table("""
  春天来了 恭喜发财 万事如意 年年有余 岁岁平安 新年快乐 生日快乐 中秋快乐 花好月圆 龙马精神
  吉祥如意 五福临门 金玉满堂 国泰民安 风调雨顺 一帆风顺 马到成功 心想事成 大吉大利 福如东海
  寿比南山 百年好合 天长地久 山高水长 春华秋实 海阔天空 人间烟火 星辰大海 诗和远方 岁月静好
  不忘初心 厚德载物 自强不息 学海无涯 书山有路 天道酬勤 柳暗花明 鸟语花香 春暖花开 秋高气爽
  冬日暖阳 月满西楼 江南烟雨 大漠孤烟 长河落日 明月清风 红红火火 团团圆圆 喜气洋洋 开门大吉
  欢迎光临 谢谢惠顾 今日特价 限时优惠 新品上市 全场五折 音乐节 读书会 展览会 运动会 咖啡馆 图书馆
  博物馆 茶叙 夜市 集市 花市 元宵节 端午节 重阳节 清明 立春 冬至 谷雨 白露 小满 夏至 大雪 春节
  元旦 国庆 七夕 除夕 腊八 福到 囍
""")

EN_WORDS = _table("""
  LOVE HOPE JOY PEACE LUCK DREAM SMILE HAPPY SUN MOON STAR SKY SEA RAIN SNOW WIND FIRE WATER EARTH
  TREE LEAF ROSE LILY BIRD FISH CAT DOG FOX BEAR WOLF LION TIGER HORSE SHEEP MOUSE PANDA KOALA TEA
  MILK CAKE BREAD RICE SOUP WINE BEER FOOD FRUIT APPLE LEMON PEACH GRAPE MELON MANGO BERRY SALE
  OPEN NEW HOT COOL BEST FREE GIFT SHOP CAFE BAR HOTEL HOME HOUSE ROOM DOOR ROAD CITY TOWN PARK
  RIVER LAKE BEACH HILL ROCK STONE GOLD RED BLUE GREEN PINK BLACK WHITE BROWN GRAY MUSIC DANCE
  SONG ROCK JAZZ PIANO DRUM BAND SHOW FILM MOVIE GAME PLAY SPORT RUN JUMP SWIM FLY RIDE WALK TRIP
  TOUR HELLO HI BYE YES NO GO STOP WOW YAY OK HEY THANK YOU WE ME US LIFE LIVE TIME DAY NIGHT YEAR
  WEEK TODAY NOW EVER BABY KID BOY GIRL MAN WOMAN KING QUEEN TEAM CLUB PARTY EVENT MAGIC POWER
  SPEED LIGHT SHINE GLOW BRAVE FRESH SWEET SUPER MEGA ULTRA MAX PRO PLUS ZERO ONE TWO THREE FOUR
  FIVE SIX SEVEN EIGHT NINE TEN BOOK READ WRITE PAGE WORD STORY POEM ART DRAW PAINT COLOR PHOTO
  STYLE LOOK WEAR SHOES HAT BAG BOX TOY BALL KITE BOAT SHIP TRAIN PLANE CAR BUS BIKE ROBOT SPACE
  MARS VENUS ALIEN COMET ORBIT SOLAR LUNAR OCEAN WAVE CORAL SHELL WHALE SHARK SQUID CRAB QUIZ
  QUICK QUIET JELLY JUMBO JUNE JULY MAY APRIL MARCH FROST BLOOM FALL CHILL WARM FLAME SPARK CLOUD
  STORM MIST DAWN DUSK NORTH SOUTH EAST WEST LEFT RIGHT UP DOWN BIG SMALL TALL LONG FAST SLOW HIGH
  LOW DEEP EASY HARD SOFT LOUD CALM WILD VOTE WIN PRIZE MEDAL CROWN JEWEL PEARL RUBY ZEN YOGA SPA
  RELAX SLEEP REST VIBE XRAY ZOO ZEBRA VAN VASE VIOLA VOICE WORLD UNITY TRUST TRUTH FAITH GRACE
  HONOR PRIDE NOBLE GREAT GRAND ROYAL LUCKY FUNNY CRAZY LAZY JAZZY FIZZ BUZZ POP
""")

EN_PHRASES = _table("""
  SPRING SUMMER AUTUMN WINTER COFFEE FRIEND THANKS WELCOME MARKET GARDEN BAKERY MUSEUM LIBRARY
  FESTIVAL CONCERT JOURNEY HARVEST LANTERN DRAGON PHOENIX HORIZON SUNRISE SUNSET RAINBOW FOREST
  MOUNTAIN ISLAND DESERT PLANET GALAXY ROCKET GOOD_LUCK HAPPY_DAY NEW_YEAR BIG_SALE OPEN_NOW
  TEA_TIME LETS_GO BE_KIND DREAM_BIG STAY_WILD GOOD_NIGHT HELLO_SUN
""")

CULTURE_WORDS = frozenset(
  _table("""
  新年 新春 春天 中秋 团圆 平安 吉祥 安康 山水 江南 长江 长城 长寿 红茶 花灯 茶花 书画 诗歌 国画
  羊年 马年 牛年 龙年 虎年 五福 双喜 金玉 梅花 兰花 竹子 太平 福星 寿星 喜乐 明月 百福 三国 圆月
  花好 月圆 恭喜发财 年年有余 元宵节 端午节 春节
""")
)


@functools.cache
def common_chars() -> str:
  """The 3,755 characters of GB 2312 level 1."""
  return _gb2312(0xB0, 0xD7)


@functools.cache
def uncommon_chars() -> str:
  """The 3,008 characters of GB 2312 level 2."""
  return _gb2312(0xD8, 0xF7)


def _gb2312(first: int, last: int) -> str:
  rows = (bytes([hi, lo]) for hi in range(first, last + 1) for lo in range(0xA1, 0xFF))
  return "".join(raw.decode("gb2312", errors="ignore") for raw in rows)


@functools.cache
def nano_zh_words() -> tuple[str, ...]:
  """Two-character real words that the nano vocabulary can write."""
  allowed = set(NANO_CHARS)
  return tuple(dict.fromkeys(w for w in ZH_WORDS if len(w) == 2 and set(w) <= allowed))


@functools.cache
def nano_en_words() -> tuple[str, ...]:
  """English words of two to five letters."""
  return tuple(dict.fromkeys(w for w in EN_WORDS if 2 <= len(w) <= 5))


@functools.cache
def families() -> dict[str, str]:
  """{character: the characters it is easily taken for}."""
  out: dict[str, str] = {}
  for row in FAMILIES:
    for char in row:
      out[char] = "".join(dict.fromkeys(out.get(char, "") + row.replace(char, "")))
  return out
